//! The `sample` action: telling a collector of some of the packets.
//!
//! Owns [`Sample`] and its text. Never knows the collector: that is a row of the database of Open vSwitch.
//! Invariant: text and value convert both ways without loss.
//! Source: ovs-actions(7) "The sample action".

use std::fmt;

use super::{
    PortNo,
    text::{self, TextError},
};

/// Which way a sampled packet passes the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum SampleSide {
    /// It is not said.
    #[default]
    Unsaid,
    /// It comes in.
    Ingress,
    /// It goes out.
    Egress,
}

impl SampleSide {
    /// Wire number and name of each.
    pub(crate) const ALL: [(Self, u8, &'static str); 3] =
        [(Self::Unsaid, 0, ""), (Self::Ingress, 1, "ingress"), (Self::Egress, 2, "egress")];
}

/// Tells IPFIX collectors of some packets.
///
/// ```
/// use openflow::flow::{Action, Sample};
/// let all = Action::Sample(Sample { obs_point_id: 7, ..Sample::new(u16::MAX, 1) });
/// assert_eq!(all.to_string(), "sample(probability=65535,collector_set_id=1,obs_domain_id=0,obs_point_id=7)");
/// assert_eq!(all.to_string().parse::<Action>()?, all);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sample {
    /// How many of 65535 packets are told of; at least 1.
    pub probability: u16,
    /// Which set of collectors: `Flow_Sample_Collector_Set` in the database.
    pub collector_set_id: u32,
    /// What the record says of the domain.
    pub obs_domain_id: u32,
    /// What the record says of the point.
    pub obs_point_id: u32,
    /// The port at which it is sampled, so that a record can name it.
    pub port: Option<PortNo>,
    /// Which way it passes that port.
    pub side: SampleSide,
}

impl Sample {
    /// Tells the set of collectors of `probability` packets of 65535.
    #[must_use]
    pub fn new(probability: u16, collector_set_id: u32) -> Self {
        Self { probability, collector_set_id, obs_domain_id: 0, obs_point_id: 0, port: None, side: SampleSide::Unsaid }
    }

    pub(super) fn parse(text: &str) -> Result<Self, TextError> {
        let mut sample = Self::new(0, 0);
        for item in text::items(text)? {
            match text::key_value(item) {
                ("probability", Some(value)) => sample.probability = text::number("probability", value)?,
                ("collector_set_id", Some(value)) => sample.collector_set_id = text::number("collector_set_id", value)?,
                ("obs_domain_id", Some(value)) => sample.obs_domain_id = text::number("obs_domain_id", value)?,
                ("obs_point_id", Some(value)) => sample.obs_point_id = text::number("obs_point_id", value)?,
                ("sampling_port", Some(value)) => {
                    sample.port = Some(value.parse().map_err(|_| text::bad("sampling_port", value))?);
                }
                ("ingress", None) => sample.side = SampleSide::Ingress,
                ("egress", None) => sample.side = SampleSide::Egress,
                (key, _) => return Err(TextError::UnknownKey { key: key.to_owned(), context: "sample()" }),
            }
        }
        Ok(sample)
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sample(probability={},collector_set_id={}", self.probability, self.collector_set_id)?;
        write!(f, ",obs_domain_id={},obs_point_id={}", self.obs_domain_id, self.obs_point_id)?;
        if let Some(port) = self.port {
            write!(f, ",sampling_port={port}")?;
        }
        if self.side != SampleSide::Unsaid {
            let name = SampleSide::ALL.iter().find(|(side, ..)| *side == self.side).map_or("", |(.., name)| name);
            write!(f, ",{name}")?;
        }
        f.write_str(")")
    }
}
