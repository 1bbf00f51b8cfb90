//! How a node may reach its upstream.

use super::Reader;

/// Which of its upstreams' routes a child may use (TOP-3, TOP-4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Straight to the parent's link port only: an inside node with the gateway switched off.
    Direct,
    /// Through a gateway only: an outside node.
    Gateway,
    /// Straight first, through a gateway otherwise.
    #[default]
    Any,
}

impl Reach {
    /// The words of the configuration.
    pub const WORDS: [(&'static str, Reach); 3] =
        [("direct", Reach::Direct), ("gateway", Reach::Gateway), ("any", Reach::Any)];

    /// Reads the switch "reach the upstream over HTTPS via the Internet gateway", `via_gateway = true | false` (TOP-3), or
    /// `reach` for a node of which more is known, such as that it stands outside. One of them at most.
    pub fn read(reader: &mut Reader<'_>) -> Reach {
        let switch: Option<bool> = reader.optional("via_gateway");
        let reach = reader.word_or("reach", &Reach::WORDS, Reach::default());
        match switch {
            None => reach,
            Some(_) if reader.has("reach") => {
                reader.mistake("via_gateway", "conflict", "reach says it already: leave one of them out");
                reach
            }
            Some(true) => Reach::Any,
            Some(false) => Reach::Direct,
        }
    }

    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Reach::Direct => "direct",
            Reach::Gateway => "gateway",
            Reach::Any => "any",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    fn read(text: &str) -> Result<Reach, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let reach = Reach::read(&mut reader);
        reader.finish();
        mistakes.guard(reach).map_err(|m| m.to_string())
    }

    #[test]
    fn top_3_the_switch_and_the_word_are_read_and_not_both() {
        assert_eq!(read(""), Ok(Reach::Any), "the gateway may be used unless it is switched off");
        assert_eq!(read("via_gateway = true"), Ok(Reach::Any));
        assert_eq!(read("via_gateway = false"), Ok(Reach::Direct));
        assert_eq!(read("reach = 'gateway'"), Ok(Reach::Gateway));
        assert!(read("via_gateway = true\nreach = 'any'").unwrap_err().contains("via_gateway: "));
        assert!(read("via_gateway = 'yes'").unwrap_err().contains("(wrong_type)"));
        assert!(read("via_gatewy = true").unwrap_err().contains("did you mean \"via_gateway\"?"));
    }
}
