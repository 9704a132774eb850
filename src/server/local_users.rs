//! Which local users may call a service that demands no token, and which client each of them is. It decides on plain
//! values; `peer_user` asks the kernel.

use std::collections::BTreeSet;

use cc_executor_actors::client::ClientName;

/// The user that may do everything, and so may call every service.
const ROOT: u32 = 0;

/// The users that may call a service on loopback without a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalUsers(BTreeSet<u32>);

impl LocalUsers {
    /// The service's own user, root, and these.
    pub fn new(own: u32, allowed: impl IntoIterator<Item = u32>) -> Self {
        LocalUsers(allowed.into_iter().chain([own, ROOT]).collect())
    }

    /// The client that a connection of this user belongs to. The argument is the user, or why it is not known.
    ///
    /// # Errors
    /// The user may not call the service. The text says what to do.
    pub fn client(&self, uid: Result<u32, &str>) -> Result<ClientName, String> {
        match uid {
            Ok(uid) if self.0.contains(&uid) => Ok(ClientName::of_user(uid)),
            Ok(uid) => Err(format!(
                "user {uid} may not call this service without a token: set a token or pass --tokens-file, or allow the user with --allow-local-users {uid}"
            )),
            Err(reason) => Err(format!(
                "this service demands no token, and the user of the connection is not known: {reason}; set a token or pass --tokens-file, or allow all local users with --allow-local-users all"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_user_root_and_allowed_users_are_clients() {
        let users = LocalUsers::new(1000, [33]);
        for uid in [0, 33, 1000] {
            assert_eq!(users.client(Ok(uid)), Ok(ClientName::of_user(uid)));
        }
        let refusal = users.client(Ok(34)).unwrap_err();
        assert!(refusal.starts_with("user 34 ") && refusal.ends_with("--allow-local-users 34"), "{refusal}");
        let refusal = users.client(Err("it left")).unwrap_err();
        assert!(refusal.contains("it left; ") && refusal.ends_with("--allow-local-users all"), "{refusal}");
    }
}
