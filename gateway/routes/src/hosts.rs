//! What a route is chosen by: its host and its path.

use edd_route::Host;

use crate::check::Check;
use crate::yaml::At;

impl Check<'_> {
    pub(crate) fn host(&mut self, at: At, text: &str) -> Option<String> {
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(name) => ("*.", name),
            None => ("", text),
        };
        let host = match Host::parse(name) {
            Ok(_) if text.contains([':', '[']) => {
                self.mistake(
                    at,
                    format!("host: `{text}` has a port; routes name hosts only"),
                );
                return None;
            }
            Ok(host) => host,
            Err(error) => {
                self.mistake(at, format!("host: `{text}` {error}"));
                return None;
            }
        };
        let name = host.as_str();
        let below = name
            .strip_suffix(self.containers.as_str())
            .is_some_and(|rest| rest.ends_with('.'));
        if below || (!wildcard.is_empty() && name == self.containers) {
            let message = format!(
                "host: `{text}` lies under {}, where containers are",
                self.containers
            );
            self.mistake(at, message);
            return None;
        }
        Some(format!("{wildcard}{name}"))
    }

    pub(crate) fn path(&mut self, at: At, text: String) -> Option<String> {
        if let Err(error) = edd_route::path::check(&text) {
            self.mistake(at, format!("path: `{text}`: {error}"));
            return None;
        }
        if let Some(bad) = text
            .chars()
            .find(|c| matches!(c, '?' | '#') || !c.is_ascii_graphic())
        {
            self.mistake(at, format!("path: `{text}` has {bad:?}"));
            return None;
        }
        Some(text)
    }
}
