//! `--samples FORMAT[:PATH]`.

use std::path::PathBuf;
use std::str::FromStr;

use super::{ADAPTERS, AdapterInfo, adapter};

/// Where the samples come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SamplesSource {
    /// COMMAND's standard output.
    CommandOutput,
    /// Standard input.
    Stdin,
    /// A file that exists or that COMMAND will create, or a FIFO.
    Path(PathBuf),
    /// A Unix socket that observer makes, and to which the generator connects.
    Socket(PathBuf),
}

/// `--samples`, parsed.
#[derive(Clone, Debug)]
pub struct SamplesSpec {
    /// The format.
    pub adapter: &'static AdapterInfo,
    /// The source.
    pub source: SamplesSource,
}

impl FromStr for SamplesSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, path) = match text.split_once(':') {
            Some((name, path)) => (name, Some(path)),
            None => (text, None),
        };
        let adapter = adapter(name).ok_or_else(|| {
            let names: Vec<_> = ADAPTERS.iter().map(|info| info.name).collect();
            format!("unknown format {name:?}; known formats: {}", names.join(", "))
        })?;
        let source = match path {
            None => SamplesSource::CommandOutput,
            Some("" | "unix:") => return Err(format!("{name}: needs a path after the colon")),
            Some("-") => SamplesSource::Stdin,
            Some(path) => match path.strip_prefix("unix:") {
                Some(path) => SamplesSource::Socket(PathBuf::from(path)),
                None => SamplesSource::Path(PathBuf::from(path)),
            },
        };
        Ok(Self { adapter, source })
    }
}

impl std::fmt::Display for SamplesSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            SamplesSource::CommandOutput => f.write_str(self.adapter.name),
            SamplesSource::Stdin => write!(f, "{}:-", self.adapter.name),
            SamplesSource::Path(path) => write!(f, "{}:{}", self.adapter.name, path.display()),
            SamplesSource::Socket(path) => {
                write!(f, "{}:unix:{}", self.adapter.name, path.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_names_a_format_and_a_source() {
        let parse = |text: &str| text.parse::<SamplesSpec>();
        assert_eq!(parse("hey").unwrap().source, SamplesSource::CommandOutput);
        assert_eq!(parse("observer-load:-").unwrap().source, SamplesSource::Stdin);
        assert_eq!(parse("observer:a").unwrap().to_string(), "observer-load:a", "an older name");
        let spec = parse("vegeta-csv:/tmp/a:b.csv").unwrap();
        assert_eq!(spec.adapter.name, "vegeta-csv");
        assert_eq!(spec.source, SamplesSource::Path("/tmp/a:b.csv".into()));
        assert_eq!(spec.to_string(), "vegeta-csv:/tmp/a:b.csv");
        let spec = parse("observer-load:unix:/run/s").unwrap();
        assert_eq!(spec.source, SamplesSource::Socket("/run/s".into()));
        assert_eq!(spec.to_string(), "observer-load:unix:/run/s");
    }

    #[test]
    fn a_wrong_spec_says_what_there_is() {
        let unknown = "jmeter".parse::<SamplesSpec>().unwrap_err();
        assert!(unknown.contains("vegeta-json"), "{unknown}");
        assert!("hey:".parse::<SamplesSpec>().is_err());
        assert!("observer:unix:".parse::<SamplesSpec>().is_err());
    }
}
