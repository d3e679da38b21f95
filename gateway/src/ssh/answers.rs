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

/// Asked and not answered, in order. Short sections.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<VecDeque<Question>>>);

/// What the connection's loop waits for.
#[derive(Debug)]
pub(crate) struct Awaited {
    asked: Asked,
    told: watch::Receiver<Told>,
    /// Questions so far.
    count: u64,
    /// One was not answered in time: no more is waited for.
    given_up: bool,
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
        given_up: false,
    };
    (answers, awaited)
}

impl Answers {
    /// The container is about to be asked.
    pub(crate) fn ask(&self, question: Question) {
        self.asked.lock().push_back(question);
    }

    /// It has answered: what, if it was asked anything.
    pub(crate) fn hear(&self) -> Option<Question> {
        self.asked.lock().pop_front()
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
    fn lock(&self) -> MutexGuard<'_, VecDeque<Question>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Awaited {
    /// The container's answer to the next question; what it leaves unanswered, it grants. Call it
    /// once for each question, in order.
    pub(crate) async fn next(&mut self) -> bool {
        self.count += 1;
        if self.given_up {
            return true;
        }
        let mine = self.count;
        let answered = self.told.wait_for(|told| told.count >= mine);
        match timeout(PATIENCE, answered).await {
            Ok(Ok(told)) => told.accepted,
            // The channel has ended.
            Ok(Err(_)) => false,
            Err(_) => {
                self.given_up = true;
                // Some servers never answer it; their next answer is to what comes next.
                self.asked
                    .lock()
                    .retain(|question| *question == Question::Run);
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
            answers.ask(question);
        }
        assert_eq!(answers.hear(), Some(Question::Terminal));
        let refusing = async {
            tokio::task::yield_now().await;
            answers.tell(false);
        };
        let (accepted, ()) = tokio::join!(awaited.next(), refusing);
        assert!(!accepted);
        assert_eq!(answers.hear(), Some(Question::Run));
        awaited.pass();
        answers.tell(false);
        assert_eq!(answers.hear(), Some(Question::Other));
        answers.tell(true);
        assert_eq!(answers.hear(), None, "nobody has asked");
        assert!(awaited.next().await);
        assert!(awaited.lives());
        drop(answers);
        assert!(!awaited.lives() && !awaited.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_once() {
        let (answers, mut awaited) = pair();
        let begin = tokio::time::Instant::now();
        answers.ask(Question::Terminal);
        assert!(awaited.next().await);
        assert!(awaited.next().await);
        assert_eq!(begin.elapsed(), PATIENCE);
        answers.ask(Question::Run);
        assert_eq!(answers.hear(), Some(Question::Run));
        answers.tell(false);
        assert!(awaited.next().await, "it is too late for that one");
    }
}
