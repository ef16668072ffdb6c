//! What happened: how many kills, and which went wrong.

use std::fmt;
use std::mem::discriminant;

use crate::steps::End;
use crate::survivor::Trouble;
use crate::symbols::Place;

/// After so many hangs of one operation, each of which takes its time, the operation is left alone.
const MOST_HANGS: u32 = 3;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kills: u64,
    hangs: u64,
    leaks: u64,
    wrong: u64,
    /// Failures of the same sort at instructions that follow each other are told as one.
    run: Option<Run>,
    hangs_here: u32,
}

#[derive(Debug)]
struct Run {
    operation: String,
    end: End,
    first: usize,
    last: usize,
    failure: Failure,
}

/// What was wrong after a kill.
#[derive(Debug)]
pub(crate) struct Failure {
    what: What,
    place: Option<Place>,
}

#[derive(Debug)]
enum What {
    Hang(String),
    Leak(String),
    Wrong(String),
}

impl Failure {
    pub(crate) fn wrong(error: impl Into<anyhow::Error>) -> Self {
        Self::new(What::Wrong(format!("{:#}", error.into())))
    }

    pub(crate) fn leak(what: String) -> Self {
        Self::new(What::Leak(what))
    }

    pub(crate) fn of(trouble: Trouble, when: &str) -> Self {
        Self::new(match trouble {
            Trouble::Hang => What::Hang(when.to_owned()),
            Trouble::Wrong(why) => What::Wrong(format!("{when}: {why}")),
        })
    }

    fn new(what: What) -> Self {
        Self { what, place: None }
    }

    /// Where the victim was.
    pub(crate) fn at(self, place: Place) -> Self {
        Self {
            place: Some(place),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Hang(when) => write!(f, "HANG ({when})"),
            What::Leak(what) => write!(f, "LEAK ({what})"),
            What::Wrong(what) => write!(f, "WRONG ({what})"),
        }?;
        match &self.place {
            Some(place) => write!(f, " at {place}"),
            None => Ok(()),
        }
    }
}

impl Tally {
    /// Counts a failure. `before` is the instruction before `k` that was killed at.
    pub(crate) fn fail(
        &mut self,
        operation: &str,
        end: End,
        k: usize,
        before: Option<usize>,
        failure: Failure,
    ) {
        match &failure.what {
            What::Hang(_) => {
                self.hangs += 1;
                self.hangs_here += 1;
            }
            What::Leak(_) => self.leaks += 1,
            What::Wrong(_) => self.wrong += 1,
        }
        if let Some(run) = &mut self.run
            && run.operation == operation
            && Some(run.last) == before
            && discriminant(&run.failure.what) == discriminant(&failure.what)
        {
            run.last = k;
            return;
        }
        self.tell();
        self.run = Some(Run {
            operation: operation.to_owned(),
            end,
            first: k,
            last: k,
            failure,
        });
    }

    /// Tells what was not told yet.
    pub(crate) fn tell(&mut self) {
        let Some(run) = self.run.take() else { return };
        let Run {
            operation,
            end,
            first,
            last,
            failure,
        } = run;
        let to = if last == first {
            String::new()
        } else {
            format!(" to {last}")
        };
        let how = match end {
            End::Kill => "",
            End::Exec => " --exec",
        };
        println!("{operation}: killed at instruction {first}{to}: {failure}");
        println!("    again: cargo xtask torture --operation {operation} --at {first}{how}");
    }

    /// An operation ends.
    pub(crate) fn close(&mut self) {
        self.tell();
        self.hangs_here = 0;
    }

    /// Whether the operation is to be left alone.
    pub(crate) fn gives_up(&self, operation: &str) -> bool {
        let enough = self.hangs_here >= MOST_HANGS;
        if enough {
            println!("{operation}: hung {MOST_HANGS} times; its other instructions are left out");
        }
        enough
    }

    pub(crate) fn failed(&self) -> bool {
        self.hangs + self.leaks + self.wrong > 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kills,
            hangs,
            leaks,
            wrong,
            ..
        } = self;
        write!(f, "kills {kills}, hangs {hangs}, leaks {leaks}")?;
        if *wrong > 0 {
            write!(f, ", wrong {wrong}")?;
        }
        Ok(())
    }
}
