//! The users that may call a service on loopback without a token, by their names or numbers.

use std::collections::BTreeSet;

use nix::unistd::User;

/// The text that stands for every user.
const ALL: &str = "all";

/// Users besides the service's own and root.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum AllowedUsers {
    /// Every user: nobody asks who it is.
    All,
    /// These.
    Only(BTreeSet<u32>),
}

impl Default for AllowedUsers {
    fn default() -> Self {
        AllowedUsers::Only(BTreeSet::new())
    }
}

/// Reads a list of users with commas.
///
/// # Errors
/// A name belongs to no user of this machine.
pub(super) fn allowed_users(text: &str) -> Result<AllowedUsers, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    if text.trim() == ALL {
        return Ok(AllowedUsers::All);
    }
    names.map(uid).collect::<Result<_, _>>().map(AllowedUsers::Only)
}

/// A user's number, which may also be given itself.
fn uid(name: &str) -> Result<u32, String> {
    if let Ok(uid) = name.parse() {
        return Ok(uid);
    }
    match User::from_name(name) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) if name == ALL => Err(format!("must be {ALL:?} alone, or a list of users")),
        Ok(None) => Err(format!("must name users of this machine, or their numbers: there is no user {name:?}")),
        Err(error) => Err(format!("names the user {name:?}, who cannot be looked up: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names() {
        let only = |uids: &[u32]| Ok(AllowedUsers::Only(uids.iter().copied().collect()));
        for (text, users) in
            [("", only(&[])), ("1000", only(&[1000])), (" root , 7,", only(&[0, 7])), ("all", Ok(AllowedUsers::All))]
        {
            assert_eq!(allowed_users(text), users, "{text}");
        }
        for text in ["no-such-user", "-1", "4294967296", "all,root", "root,?"] {
            assert!(allowed_users(text).is_err(), "{text}");
        }
    }
}
