//! The services that drills are played on: observer's own in four forms, and programs of this host.

use std::env;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::rows::{Form, Injection};
use crate::host::is_program;

/// A service that drills are played on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// The throwaway service of observer itself.
    Own(Form),
    /// A program of this host.
    Real(Real),
}

impl Service {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 10] = [
        Self::Own(Form::EventLoop),
        Self::Own(Form::Pool),
        Self::Own(Form::ThreadPerConnection),
        Self::Own(Form::AcceptorWorkers),
        Self::Real(Real::Nginx),
        Self::Real(Real::NginxProxy),
        Self::Real(Real::Java),
        Self::Real(Real::Node),
        Self::Real(Real::Go),
        Self::Real(Real::Redis),
    ];

    /// The name on the command line and in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Own(form) => form.name(),
            Self::Real(real) => real.name(),
        }
    }

    /// What it is, for `--list`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Own(form) => form.text(),
            Self::Real(real) => real.text(),
        }
    }

    /// The service of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// Whether the injection is played on it.
    #[must_use]
    pub fn plays(self, row: &Injection) -> bool {
        match self {
            Self::Own(_) => true,
            Self::Real(real) => row.real.contains(&real),
        }
    }

    /// Whether `--quick` plays the injection on it.
    #[must_use]
    pub fn is_quick(self, row: &Injection) -> bool {
        matches!(self, Self::Own(form) if row.quick.contains(&form))
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A program that many hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Real {
    /// nginx with one worker, which serves a static file.
    Nginx,
    /// nginx with one worker, before the throwaway service as an event loop.
    NginxProxy,
    /// An HTTP server from the library of Java, with a pool of threads.
    Java,
    /// An HTTP server from the library of Node.js.
    Node,
    /// An HTTP server from the library of Go.
    Go,
    /// redis, which serves all connections in one thread and does not speak HTTP.
    Redis,
}

impl Real {
    /// The name on the command line and in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::NginxProxy => "nginx-proxy",
            Self::Java => "java",
            Self::Node => "node",
            Self::Go => "go",
            Self::Redis => "redis",
        }
    }

    /// What it is, for `--list`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Nginx => "one worker of nginx serves a static file",
            Self::NginxProxy => {
                "one worker of nginx passes requests to the event loop, which does what is injected"
            }
            Self::Java => "com.sun.net.httpserver with a pool of four threads",
            Self::Node => "the http module of Node.js",
            Self::Go => "the net/http package of Go",
            Self::Redis => "redis, whose requests are scripts of a millisecond",
        }
    }

    /// The name of the program.
    #[must_use]
    pub const fn program_name(self) -> &'static str {
        match self {
            Self::Nginx | Self::NginxProxy => "nginx",
            Self::Java => "java",
            Self::Node => "node",
            Self::Go => "go",
            Self::Redis => "redis-server",
        }
    }

    /// The program, if this host has it.
    #[must_use]
    pub fn program(self) -> Option<PathBuf> {
        find_program(self.program_name(), env::var_os("PATH").as_deref())
    }
}

/// A program in `path`, or where only the administrator's PATH leads, or where Go is unpacked by hand.
fn find_program(name: &str, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let of_path = path.into_iter().flat_map(env::split_paths);
    let places = of_path
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/go/bin"].map(PathBuf::from));
    // A relative directory in PATH is anybody's.
    places
        .filter(|place| place.is_absolute())
        .map(|place| place.join(name))
        .find(|it| is_program(it))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::drill::rows::INJECTIONS;

    #[test]
    fn services_have_names_of_their_own() {
        let names: BTreeSet<&str> = Service::ALL.iter().map(|service| service.name()).collect();
        assert_eq!(names.len(), Service::ALL.len());
        for service in Service::ALL {
            assert_eq!(Service::find(service.name()), Some(service));
            assert!(!service.text().ends_with('.'), "{}", service.name());
            let text = serde_json::to_string(&service).unwrap();
            assert_eq!(text, format!("{:?}", service.name()));
        }
        assert_eq!(Service::find("no-such"), None);
    }

    #[test]
    fn every_service_is_played_without_an_injection_and_with_some() {
        for service in Service::ALL {
            let played: Vec<_> = INJECTIONS.iter().filter(|row| service.plays(row)).collect();
            assert_eq!(played[0].name, "nothing", "{}", service.name());
            for name in ["hog-realtime", "stop-service", "stop-generator"] {
                assert!(played.iter().any(|row| row.name == name), "{} {name}", service.name());
            }
        }
        assert!(!Service::Real(Real::Nginx).plays(Injection::find("sleep").unwrap()));
    }

    #[test]
    fn a_program_is_an_executable_file_in_an_absolute_directory_of_path() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("drill-no-such-program");
        let find = || find_program("drill-no-such-program", Some(place.path().as_os_str()));
        assert_eq!(find(), None);
        fs::write(&file, "").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(find(), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(find(), Some(file));
        assert_eq!(find_program("drill-no-such-program", Some("relative".as_ref())), None);
    }
}
