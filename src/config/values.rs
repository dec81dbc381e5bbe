//! Values of configuration files that need more than a type of the standard library.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tombolo_federation::names::NamespaceName;
use tombolo_federation::record::Entitlement;

use super::Dial;

/// One address or a list of them: replicas of one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Dials(Vec<Dial>);

impl Dials {
    /// `None` for none.
    pub(crate) fn of(addresses: Vec<Dial>) -> Option<Self> {
        (!addresses.is_empty()).then_some(Self(addresses))
    }

    /// At least one.
    pub(crate) fn as_slice(&self) -> &[Dial] {
        &self.0
    }
}

impl<T: Into<Dial>> From<T> for Dials {
    fn from(address: T) -> Self {
        Self(vec![address.into()])
    }
}

impl<'de> Deserialize<'de> for Dials {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Dials;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("HOST:PORT or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Dials, E> {
                text.parse::<Dial>().map(Into::into).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Dials, A::Error> {
                let mut dials = Vec::new();
                while let Some(dial) = list.next_element::<Dial>()? {
                    if dials.contains(&dial) {
                        return Err(de::Error::custom(format!("{dial} stands twice")));
                    }
                    dials.push(dial);
                }
                if dials.is_empty() {
                    return Err(de::Error::custom("no address"));
                }
                Ok(Dials(dials))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

/// A length of time, `3s` or `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:?}", self.0))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.parse::<SignedDuration>().ok();
        let span = parsed.and_then(|span| Duration::try_from(span).ok());
        span.map(Self).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is not a length of time like 3s or 1m 30s"))
        })
    }
}

/// Names of namespaces, or `*` alone for every one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespaces(pub(crate) Entitlement);

impl Serialize for Namespaces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Entitlement::All => ["*"].serialize(serializer),
            Entitlement::Namespaces(names) => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Namespaces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?;
        if names == ["*"] {
            return Ok(Self(Entitlement::All));
        }
        let names = names.iter().map(|name| match name.as_str() {
            "*" => Err("\"*\" is every namespace: it stands alone".to_owned()),
            name => name.parse::<NamespaceName>().map_err(|error| error.to_string()),
        });
        let names = names.collect::<Result<_, _>>().map_err(de::Error::custom)?;
        Ok(Self(Entitlement::Namespaces(names)))
    }
}
