//! What a guest is given beside its image or its bundle.

use serde::{Deserialize, Serialize};
use throughline::Hostname;

use crate::{SandboxError, Secrets};

/// What a guest is given, before anything of the user's runs in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// Its host name: 1 to 63 letters, digits, `-` and `.`. In that of a child of a fork `{index}` stands for its number.
    /// `None`: one that follows from its machine-id.
    pub hostname: Option<String>,
    /// Its secrets: files of `/run/secrets`, which everybody in the guest may read, and which are in no snapshot. What programs
    /// have read of them is theirs, and may be: see [`Restore::secret`](crate::Restore::secret).
    #[serde(default)]
    pub secrets: Secrets,
}

impl Given {
    /// Whether child `index` of a fork can be given all of it, 0 being no child; its host name.
    ///
    /// # Errors
    /// The host name is none, or a secret is none.
    pub fn check(&self, index: u64) -> Result<Option<Hostname>, SandboxError> {
        self.secrets.check()?;
        let numbered = |name: &String| match index {
            0 => name.clone(),
            index => name.replace("{index}", &index.to_string()),
        };
        Ok(self.hostname.as_ref().map(|name| Hostname::new(&numbered(name))).transpose()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_named_by_their_numbers() {
        let given = |name: &str| Given { hostname: Some(name.to_owned()), ..Given::default() };
        let name = |given: &Given, index| given.check(index).unwrap().map(|name| name.as_str().to_owned());
        assert_eq!(name(&given("web-{index}"), 12).as_deref(), Some("web-12"));
        assert_eq!(name(&given("web"), 12).as_deref(), Some("web"));
        assert_eq!(name(&given("web"), 0).as_deref(), Some("web"));
        assert_eq!(name(&Given::default(), 1), None);
        given("web-{index}").check(0).unwrap_err();
        given(&format!("{}{{index}}", "a".repeat(62))).check(10).unwrap_err();
    }
}
