//! From a request to its reply. What is known is answered on the kernel's own thread; what has to
//! ask the vault moves with its reply into a task, so that no session thread waits for the network.
//! Each request has one deadline, counted from when the first worker got it: a task that overruns
//! it is answered ETIMEDOUT.

use std::sync::Arc;

use fuser::{Errno, Request};

use super::reply::{caller, errno};
use crate::failpoint;
use crate::fs::{FileSystem, RequestCtx, Step, Work};
use crate::fuse::adapter::{Adapter, GRACE};
use crate::sys::program::name_of_process;
use crate::vault::attribution;
use crate::vault::attribution::Attribution;

impl Adapter {
    /// The process that sent the request.
    pub(super) fn attribution(&self, req: &Request) -> Attribution {
        Attribution::of(req.uid(), self.fs.is_guest(req.uid()))
    }

    /// Does `work` for a request, answers it, and notes that it is completed.
    pub(super) fn run<T: Send + 'static, W: Work<T> + 'static>(
        &self,
        req: &Request,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.end(req, self.begin(req, work), answer);
    }

    /// [`Adapter::run`] for what never waits.
    pub(super) fn run_now<T: Send + 'static>(
        &self,
        req: &Request,
        work: impl FnOnce(&RequestCtx) -> crate::fs::Result<T>,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let done = || self.fs.run_now(req.unique().0, caller(req), work);
        self.end(req, Step::Ready(self.attribution(req).scope(done)), answer);
    }

    fn begin<T: 'static, W: Work<T> + 'static>(
        &self,
        req: &Request,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
    ) -> Step<'static, T> {
        self.attribution(req).scope(|| self.fs.run(req.unique().0, caller(req), work))
    }

    /// Answers such a request. Tests end the process before and after the answer.
    pub(super) fn end<T: Send + 'static>(
        &self,
        req: &Request,
        step: Step<'static, T>,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.answer_and_complete(req, step, move |result| {
            failpoint::point("answer");
            answer(result);
            failpoint::point("answered");
        });
    }

    /// [`Adapter::run`] for a request that changes nothing: if it neither waited nor was resent,
    /// there is nothing to complete.
    pub(super) fn query<T: Send + 'static, W: Work<T> + 'static>(
        &self,
        req: &Request,
        work: impl FnOnce(Arc<FileSystem>, RequestCtx) -> W,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let step = self.begin(req, work);
        if matches!(step, Step::Ready(_)) && req.unique().0 >> 63 == 0 {
            return self.answer(req, step, answer);
        }
        self.answer_and_complete(req, step, answer);
    }

    fn answer_and_complete<T: Send + 'static>(
        &self,
        req: &Request,
        step: Step<'static, T>,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let (fs, unique) = (self.fs.clone(), req.unique().0);
        self.answer(req, step, move |result| {
            answer(result);
            fs.completed(unique);
        });
    }

    /// Gives `answer` the result, now or when the task has ended.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        req: &Request,
        step: Step<'static, T>,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let requests = self.requests.clone();
        let answer = move |result: crate::fs::Result<T>| {
            answer(result.map_err(errno));
            requests.answered();
        };
        match step {
            Step::Ready(result) => answer(result),
            Step::Pending(work) => {
                let limit = self.fs.time_left(req.unique().0) + GRACE;
                let attribution = self.attribution(req).named(name_of_process(req.pid()));
                let out = self.requests.pause.out();
                self.runtime.spawn(attribution::on_behalf_of(attribution, async move {
                    let result = tokio::time::timeout(limit, work).await;
                    answer(result.unwrap_or(Err(crate::fs::Errno::ETIMEDOUT)));
                    drop(out);
                }));
            }
        }
    }
}
