//! A shell process that owns what must not outlive us.
//!
//! Its standard input is a pipe from us. When that closes, because we let go or because we were killed, it
//! clears up; until then it takes one order a line and answers each with one line.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::owner;

#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    /// `sh -c script sh arguments…`, set up further by `prepare`.
    pub(super) fn spawn<'a>(
        script: &str,
        arguments: impl IntoIterator<Item = &'a str>,
        prepare: impl FnOnce(&mut Command),
    ) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).args(arguments);
        prepare(&mut command);
        owner::detach(&mut command);
        Self::over(command)
    }

    fn over(mut command: Command) -> io::Result<Self> {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.stderr(Stdio::null()).spawn()?;
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(Self { child, orders, answers: BufReader::new(answers) })
    }

    /// Gives one order and returns the answer.
    pub(super) fn order(&mut self, order: &str) -> io::Result<String> {
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(orders, "{order}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Keeper {
    /// Returns when everything is cleared up.
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
