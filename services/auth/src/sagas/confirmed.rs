//! Something was announced; compute confirms it, or it is announced again, and
//! after some attempts somebody is told.
//!
//! One machine for both sagas:
//!
//! - `registration`: a user is there when compute knows the name. Without that it
//!   is announced again; given up, the user stays (an account is not taken away
//!   because another service is down) and an alert asks for a look. Or the
//!   registration is undone, where the operator wants that: the user is deleted,
//!   whoever has heard of the user hears of that, and the name is free again.
//! - `user-deletion`: a user is gone when compute has removed all that was the
//!   user's. Without that the deletion is announced again; given up, an alert asks
//!   for a look. The user stays deleted.
//!
//! A confirmation that comes after that still completes it.

use std::{marker::PhantomData, time::Duration};

use edd_events::{
    envelope::Cause,
    saga::{Machine, State, Status, Transition},
};
use serde::{Deserialize, Serialize};

/// After so many waits in vain it is given up.
pub(crate) const ATTEMPTS_MAX: u32 = 3;

/// What is remembered of the user, to announce it again.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct About {
    pub(crate) user_id: i64,
    pub(crate) username: String,
    pub(crate) display_name: String,
    pub(crate) public_id: String,
    /// The version of the event.
    pub(crate) version: i64,
    /// Of the request that began it.
    pub(crate) correlation_id: Option<String>,
    pub(crate) traceparent: Option<String>,
    /// How long each wait is, in milliseconds.
    pub(crate) timeout_ms: u64,
    /// Whether it is undone when it is given up.
    #[serde(default)]
    pub(crate) undo: bool,
}

impl About {
    /// Of the request that began it, for what is announced because of it.
    pub(crate) fn cause(&self) -> Cause {
        Cause {
            correlation_id: self.correlation_id.clone(),
            causation_id: None,
            traceparent: self.traceparent.clone(),
        }
    }
}

/// What happens to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Input {
    /// It does not matter any more: the user is deleted before it was known.
    Abandoned,
    /// Compute says that it is done.
    Confirmed,
    /// The deadline is over.
    TimedOut,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Command {
    /// Announce it once more.
    AnnounceAgain,
    /// Tell somebody: it was given up.
    Report,
    /// Make it as if it had not happened.
    Undo,
}

/// Which of the two it is.
pub(crate) trait Which {
    const KIND: &'static str;
}

/// A user registered.
#[derive(Debug)]
pub(crate) enum Registration {}
/// A user was deleted.
#[derive(Debug)]
pub(crate) enum Deletion {}

impl Which for Registration {
    const KIND: &'static str = "registration";
}

impl Which for Deletion {
    const KIND: &'static str = "user-deletion";
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Confirmed<W>(PhantomData<W>);

/// How it begins: announced, waiting.
pub(crate) fn begun(about: About) -> State<About> {
    State {
        status: Status::Running,
        step: "announced".into(),
        wait: Some(Duration::from_millis(about.timeout_ms)),
        data: about,
        attempts: 0,
    }
}

impl<W: Which> Machine for Confirmed<W> {
    type Command = Command;
    type Data = About;
    type Input = Input;

    const KIND: &'static str = W::KIND;

    fn next(state: &State<About>, input: &Input) -> Option<Transition<About, Command>> {
        let to = |status, step: &str, wait, commands| {
            let attempts = state.attempts + u32::from(*input == Input::TimedOut);
            let state = State {
                status,
                step: step.into(),
                data: state.data.clone(),
                wait,
                attempts,
            };
            Some(Transition { state, commands })
        };
        match (state.status, input) {
            (Status::Completed, _) | (Status::Failed, Input::TimedOut) => None,
            (_, Input::Confirmed) => to(Status::Completed, "confirmed", None, vec![]),
            (_, Input::Abandoned) => to(Status::Completed, "abandoned", None, vec![]),
            (Status::Running, Input::TimedOut) if state.attempts + 1 < ATTEMPTS_MAX => {
                let wait = Some(Duration::from_millis(state.data.timeout_ms));
                let commands = vec![Command::AnnounceAgain];
                to(Status::Running, "announced again", wait, commands)
            }
            (Status::Running, Input::TimedOut) if state.data.undo => {
                to(Status::Completed, "undone", None, vec![Command::Undo])
            }
            (Status::Running, Input::TimedOut) => {
                to(Status::Failed, "unconfirmed", None, vec![Command::Report])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Machine = Confirmed<Deletion>;

    fn start() -> State<About> {
        start_with(false)
    }

    fn start_with(undo: bool) -> State<About> {
        begun(About {
            user_id: 7,
            username: "u".into(),
            display_name: String::new(),
            public_id: String::new(),
            version: 2,
            correlation_id: None,
            traceparent: None,
            timeout_ms: 1000,
            undo,
        })
    }

    /// The states that inputs lead through; those that change nothing are `=`.
    fn run(inputs: &[Input]) -> (Vec<String>, Vec<Command>) {
        use edd_events::saga::Machine as _;
        let (mut state, mut steps, mut commands) = (start(), Vec::new(), Vec::new());
        for input in inputs {
            match Machine::next(&state, input) {
                None => steps.push("=".to_owned()),
                Some(transition) => {
                    state = transition.state;
                    commands.extend(transition.commands);
                    steps.push(format!("{} {}", state.status, state.step));
                }
            }
            let waits = state.status == Status::Running;
            assert_eq!(state.wait.is_some(), waits, "only the running wait");
            assert_eq!(state.data, start().data);
        }
        (steps, commands)
    }

    #[test]
    fn confirmations_complete_it_once() {
        let (steps, commands) = run(&[Input::Confirmed, Input::Confirmed, Input::TimedOut]);
        assert_eq!(steps, ["completed confirmed", "=", "="]);
        assert!(commands.is_empty());
    }

    #[test]
    fn silence_announces_again_and_then_reports_once() {
        let (steps, commands) = run(&[Input::TimedOut; 5]);
        let again = "running announced again";
        assert_eq!(steps, [again, again, "failed unconfirmed", "=", "="]);
        use Command::{AnnounceAgain, Report};
        assert_eq!(commands, [AnnounceAgain, AnnounceAgain, Report]);
    }

    #[test]
    fn what_is_undone_stays_so() {
        use edd_events::saga::Machine as _;
        let mut state = start_with(true);
        let mut commands = Vec::new();
        for _ in 0..3 {
            let transition = Machine::next(&state, &Input::TimedOut).expect("a transition");
            state = transition.state;
            commands.extend(transition.commands);
        }
        assert_eq!((state.status, &*state.step), (Status::Completed, "undone"));
        use Command::{AnnounceAgain, Undo};
        assert_eq!(commands, [AnnounceAgain, AnnounceAgain, Undo]);
        assert!(Machine::next(&state, &Input::Confirmed).is_none());
    }

    #[test]
    fn a_late_confirmation_still_counts() {
        let inputs = [
            Input::TimedOut,
            Input::TimedOut,
            Input::TimedOut,
            Input::Confirmed,
        ];
        let (steps, _) = run(&inputs);
        assert_eq!(
            steps.last().map(String::as_str),
            Some("completed confirmed")
        );
    }

    /// Every sequence of inputs up to six: it ends completed exactly if it was
    /// confirmed or abandoned, and reports at most once.
    #[test]
    fn any_order_and_number_of_inputs_ends_well() {
        use edd_events::saga::Machine as _;
        let inputs = [Input::Abandoned, Input::Confirmed, Input::TimedOut];
        for code in 0..3_usize.pow(6) {
            let sequence: Vec<_> = (0..6).map(|n| inputs[code / 3_usize.pow(n) % 3]).collect();
            let (mut state, mut reports) = (start(), 0);
            for input in &sequence {
                if let Some(transition) = Machine::next(&state, input) {
                    state = transition.state;
                    let told = transition.commands.iter();
                    reports += told.filter(|command| **command == Command::Report).count();
                }
            }
            let ended = sequence.iter().any(|input| *input != Input::TimedOut);
            assert_eq!(state.status == Status::Completed, ended, "{sequence:?}");
            assert!(reports <= 1, "{sequence:?}");
        }
    }
}
