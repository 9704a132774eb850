//! Decides which consumer holds an execution: holds are numbered, and only the newest is valid.
//!
//! The request that creates an execution makes hold 1, and each consumer that attaches to it afterwards
//! makes the next. A consumer whose connection broke names its hold when it attaches again, so that it never takes the
//! execution from a newer consumer. Start with [`Holds::claim`].

use std::collections::VecDeque;

use cc_executor_actors::id::RequestId;

/// The number of requests that are remembered. Enough, because a request is repeated within seconds.
const REMEMBERED: usize = 16;

/// The identity under which a consumer acts on an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// A new request takes the execution over. The same request again is the same holder.
    Request(Option<RequestId>),
    /// The holder with this number attaches again.
    Number(u64),
    /// The holder that this request made attaches again. It does not take the execution over.
    Back(RequestId),
}

/// The result of a claim to follow an execution.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimResult {
    /// The claim makes a new hold.
    New,
    /// The claim is that of the current holder.
    Same,
    /// Another consumer has taken the execution over since.
    TakenOver,
}

/// The number of the newest hold, and the id of the request that made it, if it had one.
pub type NewestHold = (u64, Option<RequestId>);

/// Why a claim is not valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldError {
    /// No hold with this number was ever made.
    #[error("there is no hold {asked}: the newest is {newest}")]
    NeverGiven {
        /// The number.
        asked: u64,
        /// The number of the newest hold.
        newest: u64,
    },
    /// Another consumer has taken the execution over.
    #[error("this hold is over: another consumer has attached, with hold {newest}; attach without hold to take over")]
    TakenOver {
        /// The number of that hold.
        newest: u64,
    },
}

/// The holds of one execution.
#[derive(Debug)]
pub struct Holds {
    newest: u64,
    requests: VecDeque<(RequestId, u64)>,
}

impl Holds {
    /// The hold of the request that creates the execution.
    pub fn first(request: Option<RequestId>) -> Holds {
        let mut holds = Holds { newest: 0, requests: VecDeque::new() };
        holds.make(request);
        holds
    }

    /// The holds of an execution of an earlier backend: whoever had one may have it again.
    pub const UNKNOWN: NewestHold = (0, None);

    /// The holds of an ended execution, of which only the newest is remembered.
    pub fn since((newest, request): NewestHold) -> Holds {
        Holds { newest, requests: request.map(|request| (request, newest)).into_iter().collect() }
    }

    /// The newest hold, which is remembered when the execution has ended.
    pub fn remembered(&self) -> NewestHold {
        let request = self.requests.back().filter(|(_, number)| *number == self.newest).map(|(request, _)| *request);
        (self.newest, request)
    }

    /// The number of the newest hold.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Decides whether a consumer with this claim holds the execution from now on.
    ///
    /// # Errors
    ///
    /// No hold with the claimed number was ever made.
    pub fn claim(&mut self, claim: Claim) -> Result<ClaimResult, HoldError> {
        if self.newest == 0 {
            match claim {
                Claim::Number(number) if number > 0 => {
                    self.newest = number;
                    return Ok(ClaimResult::Same);
                }
                Claim::Back(request) => {
                    self.make(Some(request));
                    return Ok(ClaimResult::Same);
                }
                Claim::Number(_) | Claim::Request(_) => {}
            }
        }
        let named = match claim {
            Claim::Number(number) if number == 0 || number > self.newest => {
                return Err(HoldError::NeverGiven { asked: number, newest: self.newest });
            }
            Claim::Number(number) => Some(number),
            Claim::Request(request) => request.and_then(|request| self.number_of(request)),
            // The request never arrived, so the holder is another consumer.
            Claim::Back(request) => Some(self.number_of(request).unwrap_or(0)),
        };
        Ok(match (named, claim) {
            (Some(number), _) if number == self.newest => ClaimResult::Same,
            (None, Claim::Request(request)) => {
                self.make(request);
                ClaimResult::New
            }
            _ => ClaimResult::TakenOver,
        })
    }

    /// Whether this is the newest hold.
    ///
    /// # Errors
    ///
    /// Another consumer has taken the execution over since.
    pub fn check(&self, claim: Claim) -> Result<(), HoldError> {
        let number = match claim {
            Claim::Request(None) => return Ok(()),
            Claim::Number(number) => number,
            Claim::Request(Some(request)) | Claim::Back(request) => self.number_of(request).unwrap_or(0),
        };
        if number == self.newest || self.newest == 0 {
            return Ok(());
        }
        Err(HoldError::TakenOver { newest: self.newest })
    }

    fn number_of(&self, request: RequestId) -> Option<u64> {
        self.requests.iter().find(|(known, _)| *known == request).map(|(_, number)| *number)
    }

    fn make(&mut self, request: Option<RequestId>) {
        self.newest += 1;
        if let Some(request) = request {
            if self.requests.len() == REMEMBERED {
                self.requests.pop_front();
            }
            self.requests.push_back((request, self.newest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_request_takes_an_execution_from_its_holder() {
        let [creator, second, stranger] = [(); 3].map(|()| RequestId::random());
        let mut holds = Holds::first(Some(creator));
        let table = [
            (Claim::Number(1), ClaimResult::Same, 1),
            (Claim::Request(Some(creator)), ClaimResult::Same, 1),
            (Claim::Back(creator), ClaimResult::Same, 1),
            (Claim::Back(stranger), ClaimResult::TakenOver, 1),
            (Claim::Request(Some(second)), ClaimResult::New, 2),
            (Claim::Request(Some(second)), ClaimResult::Same, 2),
            (Claim::Number(1), ClaimResult::TakenOver, 2),
            (Claim::Request(Some(creator)), ClaimResult::TakenOver, 2),
            (Claim::Back(creator), ClaimResult::TakenOver, 2),
            (Claim::Request(None), ClaimResult::New, 3),
            (Claim::Request(None), ClaimResult::New, 4),
            (Claim::Back(second), ClaimResult::TakenOver, 4),
        ];
        for (claim, claimed, newest) in table {
            assert_eq!((holds.claim(claim).unwrap(), holds.newest()), (claimed, newest), "{claim:?}");
        }
        for number in [0, 5] {
            assert_eq!(holds.claim(Claim::Number(number)), Err(HoldError::NeverGiven { asked: number, newest: 4 }));
        }
    }

    #[test]
    fn an_old_hold_is_refused() {
        let [creator, second] = [(); 2].map(|()| RequestId::random());
        let mut holds = Holds::first(Some(creator));
        assert_eq!(holds.check(Claim::Number(1)), Ok(()));
        assert_eq!(holds.check(Claim::Request(Some(creator))), Ok(()));
        holds.claim(Claim::Request(Some(second))).unwrap();
        for old in [Claim::Number(1), Claim::Request(Some(creator)), Claim::Back(creator)] {
            assert_eq!(holds.check(old), Err(HoldError::TakenOver { newest: 2 }), "{old:?}");
        }
        for allowed in [Claim::Number(2), Claim::Request(Some(second)), Claim::Request(None)] {
            assert_eq!(holds.check(allowed), Ok(()), "{allowed:?}");
        }
    }
}
