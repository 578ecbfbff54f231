//! What a guest is given beside its image or its bundle.

use serde::{Deserialize, Serialize};
use throughline::{Hostname, HostnameError};

use crate::Secrets;

/// What a guest is given, before anything of the user's runs in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// Its host name: 1 to 63 letters, digits, `-` and `.`. In that of a child of a fork `{index}` stands for its number.
    /// `None`: one that follows from its machine-id.
    pub hostname: Option<String>,
    /// Its secrets: files of `/run/secrets`, which everybody in the guest may read, and which are in no snapshot.
    #[serde(default)]
    pub secrets: Secrets,
}

impl Given {
    /// The host name of child `index` of a fork; 0 is no child.
    ///
    /// # Errors
    /// What was given makes none.
    pub fn hostname_of(&self, index: u64) -> Result<Option<Hostname>, HostnameError> {
        let numbered = |name: &String| match index {
            0 => name.clone(),
            index => name.replace("{index}", &index.to_string()),
        };
        self.hostname.as_ref().map(|name| Hostname::new(&numbered(name))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_named_by_their_numbers() {
        let given = |name: &str| Given { hostname: Some(name.to_owned()), ..Given::default() };
        let name = |given: &Given, index| given.hostname_of(index).unwrap().map(|name| name.as_str().to_owned());
        assert_eq!(name(&given("web-{index}"), 12).as_deref(), Some("web-12"));
        assert_eq!(name(&given("web"), 12).as_deref(), Some("web"));
        assert_eq!(name(&given("web"), 0).as_deref(), Some("web"));
        assert_eq!(name(&Given::default(), 1), None);
        given("web-{index}").hostname_of(0).unwrap_err();
        given(&format!("{}{{index}}", "a".repeat(62))).hostname_of(10).unwrap_err();
    }
}
