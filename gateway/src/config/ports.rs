//! The set of dynamic ports.

use std::ops::RangeInclusive;

/// The set of dynamic ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ports(Vec<RangeInclusive<u16>>);

impl Ports {
    /// Reads `8000-8100,9000`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of ports such as 8000-8100");
        let mut ranges = Vec::new();
        for item in text
            .split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
        {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            let first: u16 = first.parse().map_err(|_| bad())?;
            let last: u16 = last.parse().map_err(|_| bad())?;
            if first == 0 || first > last {
                return Err(bad());
            }
            if ranges
                .iter()
                .any(|r: &RangeInclusive<u16>| first <= *r.end() && *r.start() <= last)
            {
                return Err(format!("{item} is listed twice"));
            }
            ranges.push(first..=last);
        }
        Ok(Self(ranges))
    }

    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().cloned().flatten()
    }
}
