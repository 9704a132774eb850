//! The identifiers. They are types of their own so that one is never passed for the other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new random one (UUID version 4, 122 random bits).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id! {
    /// One WebSocket session of a gateway.
    SessionId
}

id! {
    /// One execution of a command. Whoever knows it may ask about the execution and cancel it.
    ExecutionId
}

id! {
    /// One backend process, from its start to its end: a restarted backend has another.
    InstanceId
}

id! {
    /// One request of a gateway for an execution. A repetition of it has the same, so that it is known as such.
    RequestId
}
