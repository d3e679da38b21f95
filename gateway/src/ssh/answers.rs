//! What a container answers to the requests of a session, and who waits for that.
//!
//! The answer to a request to run something goes to the client when it comes.
//! That to what comes before, `pty-req`, `env`, `x11-req` and `auth-agent-req`,
//! is told from the client connection's only loop, which waits for it: russh
//! remembers one wanted reply per channel, and clients send the next request
//! without waiting. So it waits for a moment only; the container has merely to
//! make a terminal or a socket. Where no other channel suffers from it the loop
//! waits for what takes longer, too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a container may take; after that it is believed to be willing.
const PATIENCE: Duration = Duration::from_millis(500);

/// What a container is asked for and has to answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Question {
    /// To prepare something else than a terminal.
    Other,
    /// To run something.
    Run,
    /// To make a terminal.
    Terminal,
}

/// What a channel's task knows of its questions.
#[derive(Debug)]
pub(crate) struct Answers {
    asked: Asked,
    told: watch::Sender<Told>,
}

/// What the container was asked. Short sections.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<Questions>>);

#[derive(Debug, Default)]
struct Questions {
    /// Not answered yet, in order.
    waiting: VecDeque<Question>,
    /// Not answered in time, in order: granted since, and perhaps answered yet.
    late: VecDeque<Question>,
    /// One was late: no answer is wanted any more but to what runs something.
    given_up: bool,
}

/// What the connection's loop waits for.
#[derive(Debug)]
pub(crate) struct Awaited {
    asked: Asked,
    told: watch::Receiver<Told>,
    /// Questions so far.
    count: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// Answers so far.
    count: u64,
    /// The last one.
    accepted: bool,
}

/// Of a new channel.
pub(crate) fn pair() -> (Answers, Awaited) {
    let (sender, receiver) = watch::channel(Told::default());
    let asked = Asked::default();
    let answers = Answers {
        asked: asked.clone(),
        told: sender,
    };
    let awaited = Awaited {
        asked,
        told: receiver,
        count: 0,
    };
    (answers, awaited)
}

impl Answers {
    /// The container is about to be asked; whether it shall answer.
    ///
    /// After one answer that did not come in time, only to run something: some servers never
    /// answer the rest, and what they do answer would be taken for another's.
    #[must_use]
    pub(crate) fn ask(&self, question: Question) -> bool {
        let mut asked = self.asked.lock();
        let is_wanted = question == Question::Run || !asked.given_up;
        if is_wanted {
            asked.waiting.push_back(question);
        }
        is_wanted
    }

    /// It has answered: what, if it was asked anything.
    ///
    /// While an answer is overdue nobody can tell whether it still comes. A refusal is taken for
    /// that one: as the answer to a shell it would end the session. A success is taken for the
    /// shell's, whose client waits for it.
    pub(crate) fn hear(&self, accepted: bool) -> Option<Question> {
        let mut asked = self.asked.lock();
        let Questions { waiting, late, .. } = &mut *asked;
        let (first, then) = match accepted {
            true => (waiting, late),
            false => (late, waiting),
        };
        first.pop_front().or_else(|| then.pop_front())
    }

    /// Tells who waits.
    pub(crate) fn tell(&self, accepted: bool) {
        self.told.send_modify(|told| {
            told.count += 1;
            told.accepted = accepted;
        });
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Questions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Questions {
    fn give_up(&mut self) {
        self.given_up = true;
        let all = std::mem::take(&mut self.waiting).into_iter();
        let (waiting, late) = all.partition(|question| *question == Question::Run);
        (self.waiting, self.late) = (waiting, late);
    }
}

impl Awaited {
    /// The container's answer to the next question; what it leaves unanswered, it grants. Call it
    /// once for each question, in order.
    pub(crate) async fn next(&mut self) -> bool {
        self.count += 1;
        if self.asked.lock().given_up {
            return true;
        }
        let mine = self.count;
        let answered = self.told.wait_for(|told| told.count >= mine);
        match timeout(PATIENCE, answered).await {
            Ok(Ok(told)) => told.accepted,
            // The channel has ended.
            Ok(Err(_)) => false,
            Err(_) => {
                self.asked.lock().give_up();
                true
            }
        }
    }

    /// The next question's answer is for somebody else.
    pub(crate) fn pass(&mut self) {
        self.count += 1;
    }

    /// Whether the channel's task may still answer.
    pub(crate) fn lives(&self) -> bool {
        self.told.has_changed().is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_go_to_their_questions() {
        let (answers, mut awaited) = pair();
        for question in [Question::Terminal, Question::Run, Question::Other] {
            assert!(answers.ask(question));
        }
        assert_eq!(answers.hear(false), Some(Question::Terminal));
        let refusing = async {
            tokio::task::yield_now().await;
            answers.tell(false);
        };
        let (accepted, ()) = tokio::join!(awaited.next(), refusing);
        assert!(!accepted);
        assert_eq!(answers.hear(false), Some(Question::Run));
        awaited.pass();
        answers.tell(false);
        assert_eq!(answers.hear(true), Some(Question::Other));
        answers.tell(true);
        assert_eq!(answers.hear(true), None, "nobody has asked");
        assert!(awaited.next().await);
        assert!(awaited.lives());
        drop(answers);
        assert!(!awaited.lives() && !awaited.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_once_and_asked_no_more() {
        let (answers, mut awaited) = pair();
        let begin = tokio::time::Instant::now();
        assert!(answers.ask(Question::Terminal));
        assert!(awaited.next().await);
        assert!(!answers.ask(Question::Other));
        assert!(awaited.next().await);
        assert_eq!(begin.elapsed(), PATIENCE);
        assert!(answers.ask(Question::Run));
        assert_eq!(answers.hear(true), Some(Question::Run));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_late_is_not_that_of_the_shell() {
        for (late, run) in [(false, true), (false, false), (true, true)] {
            let (answers, mut awaited) = pair();
            assert!(answers.ask(Question::Terminal));
            assert!(awaited.next().await, "believed to be willing");
            assert!(answers.ask(Question::Run));
            let heard = [late, run].map(|accepted| (answers.hear(accepted), accepted));
            let of_run = heard.iter().find(|(what, _)| *what == Some(Question::Run));
            assert_eq!(of_run.map(|(_, accepted)| *accepted), Some(run));
            let of_terminal = (Some(Question::Terminal), late);
            assert!(heard.contains(&of_terminal), "{heard:?}");
            assert_eq!(answers.hear(false), None);
        }
    }
}
