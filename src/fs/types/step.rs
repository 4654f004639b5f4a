//! What an operation returns: an answer, or the work that is left.

use futures_util::future::BoxFuture;

use crate::fs::types::errno::Result;

/// An operation on its way: it may wait.
pub trait Work<T>: Future<Output = Result<T>> + Send {}

impl<T, W: Future<Output = Result<T>> + Send> Work<T> for W {}

/// An answer, or what is left of the work that gives it.
pub enum Step<'a, T> {
    /// Known without a request.
    Ready(Result<T>),
    /// Needs requests to the vault.
    Pending(BoxFuture<'a, Result<T>>),
}
