//! What a container answers to the requests of a session, and who waits for that.
//!
//! The answer to a request to run something goes to the client when it comes.
//! That to what comes before, `pty-req`, `env`, `x11-req` and `auth-agent-req`,
//! is told from the client connection's only loop, which waits for it: russh
//! remembers one wanted reply per channel, and clients send the next request
//! without waiting. So it waits for a moment only; the container has merely to
//! make a terminal or a socket. Where no other channel suffers from it the loop
//! waits for what takes longer, too.
//!
//! A container that has kept one channel waiting for nothing would do so with each: from then on
//! nobody waits ([`Silence`]), until it answers something.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long a container may take; after that it is believed to be willing.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the answer to a request to run something may stay away after a refusal that was taken
/// for an overdue one; then it was that answer.
const DOUBT: Duration = Duration::from_secs(10);

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

/// What an answer of the container means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Heard {
    /// The answer to this question.
    Of(Question),
    /// It does not run what its client believes to run: the success before was an overdue answer.
    RunsNothing,
}

/// Whether the container of a client's connection leaves unanswered what prepares a session.
/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Silence(Arc<AtomicBool>);

/// What a channel's task knows of its questions.
#[derive(Debug)]
pub(crate) struct Answers {
    silence: Silence,
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
    /// The next one is granted before it is asked, and asked all the same: an answer would end
    /// the silence.
    ahead: bool,
    /// A success was taken for that of what runs something while others were overdue.
    guessed: bool,
    /// A refusal was taken for an overdue one while what runs something waits: until when.
    doubt: Option<Instant>,
}

/// What the connection's loop waits for.
#[derive(Debug)]
pub(crate) struct Awaited {
    silence: Silence,
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

impl Silence {
    fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn lasts(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Of a new channel, in a connection of which this is known.
pub(crate) fn pair(silence: &Silence) -> (Answers, Awaited) {
    let (sender, receiver) = watch::channel(Told::default());
    let asked = Asked::default();
    let answers = Answers {
        silence: silence.clone(),
        asked: asked.clone(),
        told: sender,
    };
    let awaited = Awaited {
        silence: silence.clone(),
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
        if question == Question::Run || !asked.given_up {
            asked.waiting.push_back(question);
            return true;
        }
        let is_wanted = std::mem::take(&mut asked.ahead);
        if is_wanted {
            asked.late.push_back(question);
        }
        is_wanted
    }

    /// It has answered: what, if it was asked anything.
    ///
    /// While an answer is overdue nobody can tell whether it still comes. A refusal is taken for
    /// that one: as the answer to a shell it would end the session. A success is taken for the
    /// shell's, whose client waits for it. If all answers come after all, the last one was the
    /// shell's; if none comes after a refusal, that was ([`Answers::settle`]).
    pub(crate) fn hear(&self, accepted: bool) -> Option<Heard> {
        let mut asked = self.asked.lock();
        let Questions {
            waiting,
            late,
            guessed,
            doubt,
            ..
        } = &mut *asked;
        let runs = waiting.front() == Some(&Question::Run);
        let overdue = !late.is_empty();
        let (first, then) = match accepted {
            true => (waiting, late),
            false => (late, waiting),
        };
        let heard = first.pop_front().or_else(|| then.pop_front())?;
        *doubt = (!accepted && overdue && runs).then(|| Instant::now() + DOUBT);
        if runs && overdue && accepted {
            *guessed = true;
        }
        // That to run something it answers however it treats the rest.
        if heard != Question::Run {
            self.silence.end();
        }
        let is_last = asked.guessed && asked.late.is_empty() && heard != Question::Run;
        if is_last && !accepted {
            return Some(Heard::RunsNothing);
        }
        Some(Heard::Of(heard))
    }

    /// Until when the next answer has to come; none: it may take its time.
    pub(crate) fn doubt(&self) -> Option<Instant> {
        self.asked.lock().doubt
    }

    /// It has not come: the refusal was the answer to what runs something. False: to nothing.
    pub(crate) fn settle(&self) -> bool {
        let mut asked = self.asked.lock();
        asked.doubt = None;
        let runs = asked.waiting.front() == Some(&Question::Run);
        if runs {
            asked.waiting.pop_front();
        }
        runs
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

    /// Gives up before the next question, which the channel's task may have asked by now.
    fn give_up_ahead(&mut self) {
        self.ahead = self.waiting.iter().all(|one| *one == Question::Run);
        self.give_up();
    }
}

impl Awaited {
    /// The container's answer to the next question; what it leaves unanswered, it grants. Call it
    /// once for each question, in order.
    pub(crate) async fn next(&mut self) -> bool {
        let is_answered = self.told.borrow().count > self.count;
        if !is_answered && self.silence.lasts() {
            let mut asked = self.asked.lock();
            if !asked.given_up {
                asked.give_up_ahead();
            }
        }
        self.wait().await.unwrap_or_else(|| {
            self.silence.begin();
            true
        })
    }

    /// Waits for the answer to the next question, which is to run something and for somebody
    /// else. That may take its time, so it says nothing about the container.
    pub(crate) async fn next_run(&mut self) {
        let _ = self.wait().await;
    }

    /// None: it has not come in time.
    async fn wait(&mut self) -> Option<bool> {
        self.count += 1;
        if self.asked.lock().given_up {
            return Some(true);
        }
        let mine = self.count;
        let answered = self.told.wait_for(|told| told.count >= mine);
        match timeout(PATIENCE, answered).await {
            Ok(Ok(told)) => Some(told.accepted),
            // The channel has ended.
            Ok(Err(_)) => Some(false),
            Err(_) => {
                self.asked.lock().give_up();
                None
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
        let (answers, mut awaited) = pair(&Silence::default());
        for question in [Question::Terminal, Question::Run, Question::Other] {
            assert!(answers.ask(question));
        }
        assert_eq!(answers.hear(false), Some(Heard::Of(Question::Terminal)));
        let refusing = async {
            tokio::task::yield_now().await;
            answers.tell(false);
        };
        let (accepted, ()) = tokio::join!(awaited.next(), refusing);
        assert!(!accepted);
        assert_eq!(answers.hear(false), Some(Heard::Of(Question::Run)));
        awaited.pass();
        answers.tell(false);
        assert_eq!(answers.hear(true), Some(Heard::Of(Question::Other)));
        answers.tell(true);
        assert_eq!(answers.hear(true), None, "nobody has asked");
        assert!(awaited.next().await);
        assert!(awaited.lives());
        drop(answers);
        assert!(!awaited.lives() && !awaited.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_once_and_asked_no_more() {
        let (answers, mut awaited) = pair(&Silence::default());
        let begin = Instant::now();
        assert!(answers.ask(Question::Terminal));
        assert!(awaited.next().await);
        assert!(!answers.ask(Question::Other));
        assert!(awaited.next().await);
        assert_eq!(begin.elapsed(), PATIENCE);
        assert!(answers.ask(Question::Run));
        assert_eq!(answers.hear(true), Some(Heard::Of(Question::Run)));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_waited_for_once_in_all_channels_of_a_connection() {
        let silence = Silence::default();
        let begin = Instant::now();
        let mut channels = Vec::new();
        for is_early in [true, true, false, false] {
            let (answers, mut awaited) = pair(&silence);
            // The channel's task may come to it later than the connection's loop.
            if is_early {
                assert!(answers.ask(Question::Terminal));
            }
            assert!(awaited.next().await);
            if !is_early {
                assert!(answers.ask(Question::Terminal), "it may have changed");
            }
            assert!(awaited.next().await);
            assert!(!answers.ask(Question::Other), "one is enough");
            assert!(answers.ask(Question::Run));
            awaited.next_run().await;
            assert_eq!(answers.hear(true), Some(Heard::Of(Question::Run)));
            channels.push((answers, awaited));
        }
        assert_eq!(begin.elapsed(), PATIENCE);
        // One of the first answers after all: the next channel's are worth a wait again.
        assert_eq!(
            channels[2].0.hear(true),
            Some(Heard::Of(Question::Terminal))
        );
        let (answers, mut awaited) = pair(&silence);
        assert!(answers.ask(Question::Terminal));
        let refusing = async {
            tokio::time::sleep(PATIENCE / 2).await;
            assert_eq!(answers.hear(false), Some(Heard::Of(Question::Terminal)));
            answers.tell(false);
        };
        let (accepted, ()) = tokio::join!(awaited.next(), refusing);
        assert!(!accepted);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_counts_in_silence_too() {
        let silence = Silence::default();
        let (answers, mut awaited) = pair(&silence);
        assert!(answers.ask(Question::Terminal));
        assert_eq!(answers.hear(false), Some(Heard::Of(Question::Terminal)));
        answers.tell(false);
        silence.begin();
        assert!(!awaited.next().await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_late_is_not_that_of_the_shell() {
        let both = [false, true];
        for (late, run) in both
            .into_iter()
            .flat_map(|late| both.map(|run| (late, run)))
        {
            let (answers, mut awaited) = pair(&Silence::default());
            assert!(answers.ask(Question::Terminal));
            assert!(awaited.next().await, "believed to be willing");
            assert!(answers.ask(Question::Run));
            let heard = [late, run].map(|accepted| answers.hear(accepted));
            let of = |question| Some(Heard::Of(question));
            let expected = match (late, run) {
                // What its client was told is not true.
                (true, false) => [of(Question::Run), Some(Heard::RunsNothing)],
                (true, true) => [of(Question::Run), of(Question::Terminal)],
                (false, _) => [of(Question::Terminal), of(Question::Run)],
            };
            assert_eq!(heard, expected, "{late} {run}");
            assert_eq!(answers.hear(false), None);
            assert_eq!(answers.doubt(), None);
        }
    }

    /// It leaves the terminal unanswered, and refuses the shell.
    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_stays_the_last_answer_is_that_of_the_shell() {
        let (answers, mut awaited) = pair(&Silence::default());
        assert!(answers.ask(Question::Terminal));
        assert!(awaited.next().await);
        assert!(answers.ask(Question::Run));
        assert_eq!(answers.hear(false), Some(Heard::Of(Question::Terminal)));
        assert_eq!(answers.doubt(), Some(Instant::now() + DOUBT));
        assert!(answers.settle());
        assert_eq!(answers.doubt(), None);
        assert!(!answers.settle());
    }
}
