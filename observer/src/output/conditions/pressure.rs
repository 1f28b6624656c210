//! The pressure under which the target ran, in words.

use crate::model::{Conditions, PressureSummary};
use crate::output::text::{clean, percent};

/// Characters of the name of a cgroup.
const NAME_CHARACTERS: usize = 120;
/// Paragraphs that are shown.
const SHOWN: usize = 4;

/// A resource: from which part of the run on waits for it are told, and what they mean.
struct Resource {
    name: &'static str,
    notable: f64,
    meaning: &'static str,
}

/// Under load, threads wait for CPUs all the time, and some wait for a disk. A wait for memory is rare where
/// there is enough of it.
const RESOURCES: [Resource; 3] = [
    Resource {
        name: "memory",
        notable: 0.02,
        meaning: "They had to free memory, or to read back pages that had been taken away: more memory, or a \
                  higher limit, takes these waits away.",
    },
    Resource {
        name: "io",
        notable: 0.10,
        meaning: "They waited for a disk: look at what is read and written, and who else uses the disk.",
    },
    Resource {
        name: "cpu",
        notable: 0.25,
        meaning: "They could run and did not: the causes runqueue_other, runqueue_self and cpu_throttle say what \
                  that did to requests.",
    },
];

/// A paragraph for each resource for which threads waited for a large part of the run: of the target's
/// cgroups where their pressure is known, of the host otherwise. Empty where there is nothing to say.
pub(super) fn paragraphs(conditions: &Conditions) -> Vec<String> {
    let of_cgroups = conditions.pressure.iter().any(|pressure| pressure.cgroup.is_some());
    let told =
        conditions.pressure.iter().filter(|pressure| pressure.cgroup.is_some() == of_cgroups);
    let mut notable: Vec<(&PressureSummary, &Resource)> = told
        .filter_map(|pressure| {
            let resource = RESOURCES.iter().find(|resource| resource.name == pressure.resource)?;
            (pressure.some_share() >= resource.notable).then_some((pressure, resource))
        })
        .collect();
    notable.sort_by(|(one, of_one), (other, of_other)| {
        let above = |pressure: &PressureSummary, of: &Resource| pressure.some_share() / of.notable;
        above(other, of_other).total_cmp(&above(one, of_one))
    });
    let shown = notable.into_iter().take(SHOWN);
    shown.map(|(pressure, resource)| paragraph(pressure, resource)).collect()
}

fn paragraph(pressure: &PressureSummary, resource: &Resource) -> String {
    let waited_for = match resource.name {
        "cpu" => "a CPU",
        "io" => "a disk",
        name => name,
    };
    let whose = match &pressure.cgroup {
        Some(cgroup) => format!("one thread of cgroup {}", clean(cgroup, NAME_CHARACTERS)),
        None => "one thread of the host".to_owned(),
    };
    let some = percent(pressure.some_share().min(1.0));
    let mut text = format!("In {some} of the run, at least {whose} waited for {waited_for}");
    // Of CPUs, only a limit can keep all threads waiting.
    match pressure.full_share().filter(|share| *share > 0.0005) {
        Some(full) => {
            text +=
                &format!(", and in {} all that had work to do did (PSI).", percent(full.min(1.0)));
        }
        None => text += " (PSI).",
    }
    if pressure.cgroup.is_none() {
        text += " These may be threads of other processes: the target is in no cgroup of version 2 of its own, \
                 so that its part is not known.";
    }
    format!("{text} {}", resource.meaning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    fn pressure(cgroup: Option<&str>, resource: &str, some_us: u64) -> PressureSummary {
        PressureSummary {
            cgroup: cgroup.map(str::to_owned),
            resource: resource.into(),
            some_us,
            full_us: Some(some_us / 2),
            observed_ns: 10_000_000_000,
            ..PressureSummary::default()
        }
    }

    fn told(pressure: Vec<PressureSummary>) -> Vec<String> {
        paragraphs(&Conditions { pressure, ..Conditions::default() })
    }

    #[test]
    fn a_cgroup_is_told_apart_from_the_host() {
        let of_cgroup = pressure(Some(example::HOSTILE), "memory", 1_200_000);
        let of_host = pressure(None, "memory", 9_000_000);
        assert_eq!(
            told(vec![of_cgroup, of_host.clone()]),
            [
                "In 12 % of the run, at least one thread of cgroup </b><i>?[31m waited for memory, and in 6.0 % all \
              that had work to do did (PSI). They had to free memory, or to read back pages that had been taken \
              away: more memory, or a higher limit, takes these waits away."
            ]
        );
        let text = &told(vec![of_host])[0];
        assert!(
            text.starts_with("In 90 % of the run, at least one thread of the host waited"),
            "{text}"
        );
        assert!(text.contains("threads of other processes"), "{text}");
    }

    #[test]
    fn what_is_usual_under_load_is_no_word() {
        assert_eq!(told(Vec::new()), [""; 0]);
        let usual = [("cpu", 2_400_000), ("io", 900_000), ("memory", 100_000), ("irq", 9_000_000)];
        assert_eq!(told(usual.map(|(name, us)| pressure(None, name, us)).into()), [""; 0]);
        let much = [("cpu", 2_600_000), ("io", 1_100_000), ("memory", 300_000)];
        let told = told(much.map(|(name, us)| pressure(None, name, us)).into());
        assert_eq!(told.len(), 3);
        assert!(told[0].contains("for memory") && told[1].contains("for a disk"), "{told:?}");
        // A kernel that does not know it, and one that was not observed at all.
        let unknown = PressureSummary { full_us: None, ..pressure(None, "cpu", 9_000_000) };
        assert!(
            paragraphs(&Conditions { pressure: vec![unknown], ..Conditions::default() })[0]
                .contains("waited for a CPU (PSI).")
        );
        let at_once = PressureSummary { observed_ns: 0, ..pressure(None, "cpu", 0) };
        assert_eq!(at_once.some_share(), 0.0);
    }
}
