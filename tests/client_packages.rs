//! The Python and TypeScript clients against the real service: both do the same in each test. What they report is compared
//! with what the service says.

mod endings;
mod faults;
mod output;
mod types;

use crate::common::client_package::Language;

/// Declares each test for both languages.
macro_rules! in_both_languages {
    ($($name:ident),* $(,)?) => {
        mod python {
            $(#[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                if let Some(package) = crate::client_packages::Language::Python.package(name) {
                    super::$name(&package);
                }
            })*
        }
        mod typescript {
            $(#[test]
            fn $name() {
                let name = concat!(module_path!(), "::", stringify!($name));
                if let Some(package) = crate::client_packages::Language::TypeScript.package(name) {
                    super::$name(&package);
                }
            })*
        }
    };
}
use in_both_languages;
