//! What an answer says about the matching of samples with requests.

use serde_json::json;

use super::exposure::{Counted, Population};
use crate::model::{Reason, RequestsSummary};
use crate::text::count;

/// Whose stalls were counted, where the target's requests were watched.
pub(super) fn counted(population: &Population) -> Option<Reason> {
    let Counted { by_thread, has_account, in_blocks, known, all } = population.counted?;
    let numbers = json!({"matched": known, "slow_and_typical": all, "in_blocks": in_blocks});
    let (known, all) = (count(known), count(all));
    if by_thread {
        let of = if in_blocks { " in the blocks of time that were recorded" } else { "" };
        let rest = match has_account {
            true => "",
            false => {
                " When they slept is not known, so the service's own waiting and work is part of \
                      the rest."
            }
        };
        let text = format!(
            "Stalls were counted for the threads that served the requests ({known} of {all} slow and \
             typical requests{of} matched).{rest}"
        );
        return Some(Reason::new("counted_by_thread", text, numbers));
    }
    let text = format!(
        "Stalls of all threads were counted together: for only {known} of {all} slow and typical \
         requests it is known which threads served them."
    );
    Some(Reason::new("counted_together", text, numbers))
}

/// Requests whose connections carried several at a time.
pub(super) fn multiplexed(requests: RequestsSummary) -> Option<Reason> {
    let (several, all) = (requests.multiplexed, requests.samples());
    (several > 0).then(|| {
        let text = format!(
            "{} of {} requests came over connections that carry several at a time (HTTP/2). The \
             target's sockets cannot tell these apart, so it is not known which threads served \
             them.",
            count(several),
            count(all)
        );
        Reason::new("multiplexed", text, json!({"multiplexed": several, "count": all}))
    })
}
