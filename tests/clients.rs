//! Several clients of one backend: whose executions are whose, and what one of them leaves to the others.

mod floods;
mod ownership;
mod shares;
