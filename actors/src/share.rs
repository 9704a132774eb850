//! How clients share a limit, in places or in bytes.
//!
//! A client alone may use all of it. While another client uses some of it, or waits for some, a client is held to three
//! quarters. If one client has used everything before another one came, the others may together exceed the limit by a
//! quarter, so that a newcomer never waits for the end of work that may take hours. Pure: no lock, no clock.

use std::collections::HashMap;

use crate::client::ClientName;

/// What each client uses of a limit.
#[derive(Clone, Debug)]
pub struct Shares {
    limit: u64,
    used: HashMap<ClientName, u64>,
    total: u64,
}

/// Whose limit is reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareScope {
    /// The client's own share.
    Client,
    /// The limit of all clients together.
    Service,
}

/// A share is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShareExceeded {
    /// Whose limit.
    pub scope: ShareScope,
    /// The limit.
    pub limit: u64,
    /// How much of it is used.
    pub used: u64,
}

impl Shares {
    /// Nothing of this limit is used.
    pub fn new(limit: u64) -> Self {
        Shares { limit, used: HashMap::new(), total: 0 }
    }

    /// How much all clients use.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How much a client uses.
    pub fn used_by(&self, client: &ClientName) -> u64 {
        self.used.get(client).copied().unwrap_or(0)
    }

    /// How far others than the largest client may together exceed the limit.
    pub fn reserve(&self) -> u64 {
        self.limit / 4
    }

    /// The share of a client while another one uses or waits for some: three quarters, rounded up.
    fn held_to(&self) -> u64 {
        self.limit - self.reserve()
    }

    /// Whether a client may use this much more. `others_wait` is whether another client waits for some.
    ///
    /// # Errors
    ///
    /// The client's share or the whole limit is used up.
    pub fn admits(&self, client: &ClientName, amount: u64, others_wait: bool) -> Result<(), ShareExceeded> {
        let own = self.used_by(client);
        self.check(own, amount, own == self.total && !others_wait)
    }

    /// Whether a client that uses nothing yet may use this much.
    ///
    /// # Errors
    ///
    /// The amount is more than a share, or the others use all that there is.
    pub fn admits_newcomer(&self, amount: u64) -> Result<(), ShareExceeded> {
        self.check(0, amount, self.total == 0)
    }

    fn check(&self, own: u64, amount: u64, is_alone: bool) -> Result<(), ShareExceeded> {
        let share = if is_alone { self.limit } else { self.held_to() };
        if own.saturating_add(amount) > share {
            return Err(ShareExceeded { scope: ShareScope::Client, limit: share, used: own });
        }
        let reserve = self.reserve();
        let would_use = self.total.saturating_add(amount);
        // Only what others than the largest client use can fill the reserve.
        if would_use <= self.limit || (own.saturating_add(amount) <= reserve && would_use <= self.limit + reserve) {
            return Ok(());
        }
        Err(ShareExceeded { scope: ShareScope::Service, limit: self.limit, used: self.total })
    }

    /// Counts what a client uses from now on.
    pub fn add(&mut self, client: &ClientName, amount: u64) {
        if amount == 0 {
            return;
        }
        *self.used.entry(client.clone()).or_default() += amount;
        self.total += amount;
    }

    /// Counts what a client no longer uses.
    pub fn remove(&mut self, client: &ClientName, amount: u64) {
        if let Some(used) = self.used.get_mut(client) {
            *used -= amount;
            self.total -= amount;
            if *used == 0 {
                self.used.remove(client);
            }
        }
    }

    /// The client that uses most: the furthest over its share.
    pub fn largest(&self) -> Option<&ClientName> {
        self.used.iter().max_by_key(|(_, used)| **used).map(|(client, _)| client)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client(n: u8) -> ClientName {
        ClientName::of_user(n.into())
    }

    #[test]
    fn a_client_alone_may_use_everything_and_a_newcomer_still_finds_a_place() {
        let (mut shares, a, b) = (Shares::new(64), client(1), client(2));
        shares.admits(&a, 64, false).unwrap();
        shares.add(&a, 64);
        let full = ShareExceeded { scope: ShareScope::Client, limit: 64, used: 64 };
        assert_eq!(shares.admits(&a, 1, false), Err(full));
        shares.admits(&b, 16, false).unwrap();
        assert_eq!(
            shares.admits(&b, 17, false),
            Err(ShareExceeded { scope: ShareScope::Service, limit: 64, used: 64 })
        );
        shares.add(&b, 1);
        shares.remove(&a, 10);
        let held = ShareExceeded { scope: ShareScope::Client, limit: 48, used: 54 };
        assert_eq!(shares.admits(&a, 1, false), Err(held), "another client holds some");
    }

    #[test]
    fn a_client_is_held_to_three_quarters_while_another_waits() {
        let (mut shares, a) = (Shares::new(4), client(1));
        shares.add(&a, 3);
        shares.admits(&a, 1, false).unwrap();
        let held = ShareExceeded { scope: ShareScope::Client, limit: 3, used: 3 };
        assert_eq!(shares.admits(&a, 1, true), Err(held));
    }

    proptest! {
        #[test]
        fn the_limit_is_never_exceeded_by_more_than_a_quarter(
            limit in 0u64..200,
            requests in prop::collection::vec((0u8..4, 1u64..40, any::<bool>(), any::<bool>()), 0..200),
        ) {
            let mut shares = Shares::new(limit);
            for (n, amount, others_wait, release) in requests {
                let client = client(n);
                if release {
                    let used = shares.used_by(&client);
                    shares.remove(&client, used.min(amount));
                } else if shares.admits(&client, amount, others_wait).is_ok() {
                    shares.add(&client, amount);
                }
                prop_assert!(shares.total() <= limit + limit / 4);
                prop_assert_eq!(shares.total(), (0..4).map(|n| shares.used_by(&self::client(n))).sum::<u64>());
            }
        }

        #[test]
        fn a_newcomer_is_always_admitted_while_only_one_client_uses_the_limit(limit in 4u64..200, used in 0u64..200) {
            let mut shares = Shares::new(limit);
            shares.add(&client(1), used.min(limit));
            prop_assert!(shares.admits(&client(2), 1, false).is_ok());
            prop_assert!(shares.admits_newcomer(1).is_ok());
        }
    }
}
