use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use crate::{Context, Message};

type BoxError = Box<dyn StdError + Send + Sync>;

/// The result of handling one message.
pub type HandlerResult = Result<(), HandlerError>;

/// User code that delivers one message.
///
/// # Examples
/// ```
/// use outbox_core::{Context, Handler, HandlerResult, Message};
/// struct Audit;
/// impl Handler for Audit {
///     async fn handle(&self, _cx: Context, message: Message) -> HandlerResult {
///         println!("{} on {}", message.id, message.topic);
///         Ok(())
///     }
/// }
/// ```
pub trait Handler: Send + Sync + 'static {
    /// Delivers `message`, which knows its attempt and its fencing number. The context carries the message's
    /// trace headers, the [deadline](Context::deadline), a [cancellation](Context::cancelled), and inside the
    /// inbox the transaction in which to write.
    ///
    /// # Errors
    /// Any error means retry; see [`HandlerResultExt`] for the other answers.
    fn handle(&self, cx: Context, message: Message) -> impl Future<Output = HandlerResult> + Send;
}

/// The object-safe twin of [`Handler`], implemented for every handler.
pub trait DynHandler: Send + Sync + 'static {
    /// See [`Handler::handle`].
    fn handle_dyn(
        &self,
        cx: Context,
        message: Message,
    ) -> Pin<Box<dyn Future<Output = HandlerResult> + Send + '_>>;
}

impl<H: Handler> DynHandler for H {
    fn handle_dyn(
        &self,
        cx: Context,
        message: Message,
    ) -> Pin<Box<dyn Future<Output = HandlerResult> + Send + '_>> {
        Box::pin(self.handle(cx, message))
    }
}

/// A closure as a [`Handler`], made by [`handler_fn`].
#[derive(Clone)]
pub struct HandlerFn<F>(F);

impl<F> fmt::Debug for HandlerFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandlerFn")
    }
}

/// Makes a handler of a closure: `handler_fn(async move |cx: Context, message: Message| { …; Ok(()) })`.
///
/// What the closure captures is cloned for each message.
pub fn handler_fn<F, Fut>(f: F) -> HandlerFn<F>
where
    F: FnOnce(Context, Message) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send,
{
    HandlerFn(f)
}

impl<F, Fut> Handler for HandlerFn<F>
where
    F: FnOnce(Context, Message) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = HandlerResult> + Send,
{
    fn handle(&self, cx: Context, message: Message) -> impl Future<Output = HandlerResult> + Send {
        (self.0.clone())(cx, message)
    }
}

/// What a failed delivery asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandlerErrorKind {
    /// Try again after the backoff.
    Retry,
    /// Try again after this delay.
    RetryAfter(Duration),
    /// Trying again cannot help: make it a dead letter.
    DeadLetter,
    /// The downstream is gone: pause, and do not count the attempt.
    Unavailable,
}

/// Why a message was not delivered. `?` turns every error, `String` and `&str` into one that means retry.
///
/// Not itself a [`std::error::Error`], so that it can be made from all of them.
pub struct HandlerError {
    kind: HandlerErrorKind,
    source: BoxError,
}

impl HandlerError {
    /// An error that asks for `kind`.
    pub fn new(kind: HandlerErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: source.into() }
    }

    /// Make it a dead letter.
    pub fn dead_letter(source: impl Into<BoxError>) -> Self {
        Self::new(HandlerErrorKind::DeadLetter, source)
    }

    /// Try again after `delay`.
    pub fn retry_after(delay: Duration, source: impl Into<BoxError>) -> Self {
        Self::new(HandlerErrorKind::RetryAfter(delay), source)
    }

    /// Pause without counting the attempt.
    pub fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::new(HandlerErrorKind::Unavailable, source)
    }

    /// What the error asks for.
    pub fn kind(&self) -> HandlerErrorKind {
        self.kind
    }

    /// The text that is stored with the message: the error and its causes, `a: b: c`.
    pub fn text(&self) -> String {
        let mut text = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            let next = error.to_string();
            if !text.ends_with(&next) {
                text = format!("{text}: {next}");
            }
            cause = error.source();
        }
        text
    }

    fn with_kind(mut self, kind: HandlerErrorKind) -> Self {
        self.kind = kind;
        self
    }
}

impl<E: Into<BoxError>> From<E> for HandlerError {
    fn from(source: E) -> Self {
        Self::new(HandlerErrorKind::Retry, source)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// Says on a result what its error asks for.
///
/// # Examples
/// ```
/// use outbox_core::{HandlerResult, HandlerResultExt, Message};
/// async fn handle(message: Message) -> HandlerResult {
///     let order: u64 = message.json().dead_letter()?;
///     charge(order).await.retry_after(std::time::Duration::from_secs(30))?;
///     Ok(())
/// }
/// # async fn charge(_: u64) -> Result<(), String> { Ok(()) }
/// ```
pub trait HandlerResultExt<T> {
    /// An error makes the message a dead letter.
    ///
    /// # Errors
    /// The error of the result.
    fn dead_letter(self) -> Result<T, HandlerError>;

    /// An error means: try again after `delay`.
    ///
    /// # Errors
    /// The error of the result.
    fn retry_after(self, delay: Duration) -> Result<T, HandlerError>;

    /// An error means that the downstream is gone: pause without counting the attempt.
    ///
    /// # Errors
    /// The error of the result.
    fn unavailable(self) -> Result<T, HandlerError>;
}

impl<T, E: Into<HandlerError>> HandlerResultExt<T> for Result<T, E> {
    fn dead_letter(self) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().with_kind(HandlerErrorKind::DeadLetter))
    }

    fn retry_after(self, delay: Duration) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().with_kind(HandlerErrorKind::RetryAfter(delay)))
    }

    fn unavailable(self) -> Result<T, HandlerError> {
        self.map_err(|error| error.into().with_kind(HandlerErrorKind::Unavailable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_means_retry_unless_it_says_otherwise() {
        let plain = |text: &str| -> HandlerResult { Err(text.to_owned())? };
        let kind = |result: HandlerResult| result.expect_err("error").kind();
        assert_eq!(kind(plain("x")), HandlerErrorKind::Retry);
        assert_eq!(kind(plain("x").dead_letter()), HandlerErrorKind::DeadLetter);
        assert_eq!(kind(plain("x").unavailable()), HandlerErrorKind::Unavailable);
        let delay = Duration::from_secs(9);
        assert_eq!(kind(Err::<(), _>("x").retry_after(delay)), HandlerErrorKind::RetryAfter(delay));
        assert_eq!(plain("broken").expect_err("error").text(), "broken");
    }
}
