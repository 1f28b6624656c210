//! `request`: requests that the target serves, from the arrival of their first byte to the last write of
//! their reply.

use observer_ebpf::wire::{
    CONNECTION_BUCKETS, CONNECTION_WAYS, CONNECTIONS, ConnectionBucket, ConnectionEntry, Counter,
    OUTGOING_UNIX, OutgoingRecord, PORT_WORDS, REQUEST_ARRIVAL_UNKNOWN, REQUEST_OPEN,
    REQUEST_UNANSWERED, REQUEST_UNIX, RequestRecord, Series,
};

use super::{
    Attach, Entries, HistogramFamily, Labels, Members, Need, NumberFamily, Numbers, Probe,
    ProbeMap, Program, RunsAt, SummaryNumbers, Tier,
};
use crate::model::{Event, Field, OutgoingRequest, RecordRow, field, socket_address};

const ARRIVALS: &str = "arrivals of requests";
const READS: &str = "reads, and so all requests";
const SENDS: &str = "writes of replies";
const STATES: &str = "new connections, and the end of connections";

const READ: &[Members] = &[Members::Sockets, Members::Connections];

const STATE: Program =
    Program::new("request_state", Attach::TpBtf("inet_sock_set_state", 3), STATES);

/// What needs types of Unix sockets.
const fn unix(name: &'static str, attach: Attach, gives: &'static str) -> Program {
    Program::new(name, attach, gives).only_with("unix_sock", "peer")
}

static REQUESTS: [(usize, Labels); 1] = [(Counter::Requests as usize, &[])];
static BYTES: [(usize, Labels); 2] =
    [(Counter::RequestBytesIn as usize, &["in"]), (Counter::RequestBytesOut as usize, &["out"])];
static OUTGOING_REQUESTS: [(usize, Labels); 1] = [(Counter::OutgoingRequests as usize, &[])];
static OTHER_SENDS: [(usize, Labels); 1] = [(Counter::RequestOtherSends as usize, &[])];

pub(super) const PROBE: Probe = Probe {
    name: "request",
    runs_at: RunsAt::Frequent("read and write of a socket, and segment that arrives"),
    about: "Requests that the target serves over TCP and Unix sockets: when data arrived in the socket, when which \
            thread read it, and when which thread sent the reply. Also requests that the target makes of other \
            services: when which thread sent them, and when which thread read the reply.",
    notes: "A request begins with a read of a connection that the target accepted, if something was sent \
            there since the read before, or nothing was read yet. So the reads of a large body are one \
            request, and so are the writes of a reply; several requests that one read takes out of the \
            socket (pipelining) are one, too. A write counts when it returns. A request is complete, and \
            its record is sent, when the next one is read or the connection ends; `observer run` adds \
            those that are open at its end. Protocols that send several requests over one connection \
            at the same time (HTTP/2) cannot be told apart this way; answers recognise such connections by \
            requests that overtake each other. Data that is taken out of the \
            socket without a call that receives (splice(2)) is not seen. A connection that is older \
            than the probe is taken as accepted if its port is one on which the target listened when \
            the run began; the arrival of its first request may be unknown. So may be that of a connection \
            over a Unix socket for which a process outside of the target listens (systemd). The end of a \
            Unix connection is not seen: the record of its last request is sent when the kernel uses the \
            memory of the socket for another one, or at the end of the run. The histograms hold only \
            requests of the target. How long a TCP connection waits in the accept queue is counted from when it is \
            established until accept(2) returns it, if the probe `socket` is attached as well. On a connection that \
            the target made, a request of another service begins with a write and ends with the read of the reply; of \
            several that are under way on one connection at the same time, only the first is seen.",
    tiers: &[
        Tier {
            name: "tp_btf",
            about: "BTF-typed tracepoints of the socket layer",
            needs: &[Need::OwnBtf, Need::Tracepoint("sock_recv_length")],
            reads: READ,
            programs: &[
                STATE,
                Program::new("request_ready", Attach::TpBtf("sk_data_ready", 1), ARRIVALS),
                Program::new("request_read", Attach::TpBtf("sock_recv_length", 3), READS),
                Program::new("request_sent", Attach::TpBtf("sock_send_length", 3), SENDS),
            ],
        },
        Tier {
            name: "fentry",
            about: "the functions of TCP and Unix sockets",
            needs: &[
                Need::OwnBtf,
                Need::Fentry,
                Need::Function("sock_def_readable"),
                Need::Function("tcp_recvmsg"),
                Need::Function("tcp_sendmsg"),
            ],
            reads: READ,
            programs: &[
                STATE,
                Program::new("request_ready_enter", Attach::Fentry("sock_def_readable"), ARRIVALS),
                Program::new("request_read_leave", Attach::Fexit("tcp_recvmsg"), READS),
                Program::new("request_sent_leave", Attach::Fexit("tcp_sendmsg"), SENDS),
                Program::new(
                    "request_page_leave",
                    Attach::Fexit("tcp_sendpage"),
                    "what is sent by sendfile(2)",
                )
                .only_with("proto", "sendpage"),
                unix(
                    "request_unix_read_leave",
                    Attach::Fexit("unix_stream_recvmsg"),
                    "reads of Unix sockets, and so all requests over them",
                ),
                unix(
                    "request_unix_sent_leave",
                    Attach::Fexit("unix_stream_sendmsg"),
                    "writes of replies over Unix sockets",
                ),
                Program::new(
                    "request_unix_page_leave",
                    Attach::Fexit("unix_stream_sendpage"),
                    "what is sent by sendfile(2) over Unix sockets",
                )
                .only_with("proto_ops", "sendpage"),
            ],
        },
        Tier {
            name: "raw_tracepoint",
            about: "tracepoints of the socket layer, read by helper calls",
            needs: &[Need::Tracepoint("sock_recv_length")],
            reads: READ,
            programs: &[
                Program::new(
                    "request_state_raw",
                    Attach::RawTracepoint("inet_sock_set_state", 3),
                    STATES,
                ),
                Program::new(
                    "request_ready_raw",
                    Attach::RawTracepoint("sk_data_ready", 1),
                    ARRIVALS,
                ),
                Program::new(
                    "request_read_raw",
                    Attach::RawTracepoint("sock_recv_length", 3),
                    READS,
                ),
                Program::new(
                    "request_sent_raw",
                    Attach::RawTracepoint("sock_send_length", 3),
                    SENDS,
                ),
            ],
        },
    ],
    records: &[&REQUEST, &OUTGOING],
    histograms: &[
        HistogramFamily {
            name: "target_accept_queue_wait",
            help: "Time from when a TCP connection to the target was established until accept(2) returned it, by the \
                   programs of the probe `socket`; missing without a target",
            of_target: true,
            series: &[(Series::AcceptQueueWait, "accept_queue_wait", &[])],
            ..HistogramFamily::BASE
        },
        HistogramFamily {
            name: "target_request_socket_wait",
            help: "Time from the arrival of a request of the target in its socket to the first read; missing without a target",
            of_target: true,
            series: &[(Series::RequestSocketWait, "socket_wait", &[])],
            ..HistogramFamily::BASE
        },
        HistogramFamily {
            name: "target_request_service",
            help: "Time from the first read of a request of the target to the first write of the reply; missing without a target",
            of_target: true,
            series: &[(Series::RequestService, "service", &[])],
            ..HistogramFamily::BASE
        },
    ],
    numbers: &[
        NumberFamily {
            name: "target_requests",
            help: "Requests of which the target read a first byte",
            labels: &[],
            numbers: Numbers::Counters(&REQUESTS),
        },
        NumberFamily {
            name: "target_request_bytes",
            help: "Bytes of requests that the target read, and of replies that it sent",
            labels: &["direction"],
            numbers: Numbers::Counters(&BYTES),
        },
        NumberFamily {
            name: "target_other_sends",
            help: "Writes of the target to accepted connections of which nothing had been read before",
            labels: &[],
            numbers: Numbers::Counters(&OTHER_SENDS),
        },
        NumberFamily {
            name: "target_outgoing_requests",
            help: "Requests that the target made of other services, and that were answered",
            labels: &[],
            numbers: Numbers::Counters(&OUTGOING_REQUESTS),
        },
    ],
    in_summary: &[
        SummaryNumbers { name: "requests", numbers: Numbers::Counters(&REQUESTS), zeros: true },
        SummaryNumbers { name: "bytes", numbers: Numbers::Counters(&BYTES), zeros: true },
        SummaryNumbers {
            name: "other_sends",
            numbers: Numbers::Counters(&OTHER_SENDS),
            zeros: false,
        },
        SummaryNumbers {
            name: "outgoing_requests",
            numbers: Numbers::Counters(&OUTGOING_REQUESTS),
            zeros: false,
        },
    ],
    maps: &[
        ProbeMap {
            name: "CONNECTION_KEYS",
            entries: Entries::Fixed(CONNECTION_BUCKETS),
            value_bytes: size_of::<ConnectionBucket>(),
            begins: &[0, 1, 2, 3, 4, 5, 6, 7],
        },
        ProbeMap {
            name: "CONNECTIONS",
            entries: Entries::Fixed(CONNECTIONS),
            value_bytes: size_of::<ConnectionEntry>(),
            begins: &[],
        },
        ProbeMap {
            name: "LISTENED_PORTS",
            entries: Entries::Fixed(PORT_WORDS),
            value_bytes: 8,
            begins: &[],
        },
    ],
    off_by_default: Some(
        "requests are of use beside the samples of a load generator, and beside stacks; `observer run` watches them \
         when it reads samples or records stacks",
    ),
    ..Probe::BASE
};

const _: () = assert!(CONNECTION_WAYS == 8, "the keys of a bucket are its begins");

static REQUEST: RecordRow = RecordRow::new::<RequestRecord>(
    "request",
    "A request was served. `duration_ns` goes from the arrival of its first byte in the socket to the \
     last write of the reply, and `tid` is the thread that read it first.",
    &[
        Field::flag(
            "arrival_unknown",
            REQUEST_ARRIVAL_UNKNOWN,
            "the arrival was not seen, and `duration_ns` begins with the read",
        ),
        Field::flag(
            "unanswered",
            REQUEST_UNANSWERED,
            "the connection was closed before anything was sent, and `end_ns` is that moment (with a Unix \
             socket, that of the read)",
        ),
        Field::flag("open", REQUEST_OPEN, "the run ended before it was known to be complete"),
        Field::flag(
            "unix",
            REQUEST_UNIX,
            "it came over a Unix socket, which has neither ports nor an address; the column is missing \
             in older runs",
        )
        .optional(),
        field!(RequestRecord.read_ns, "read_ns", "when the first read returned"),
        field!(
            RequestRecord.first_send_ns,
            "first_send_ns",
            "when the first write returned; 0 if there was none"
        ),
        field!(RequestRecord.bytes_in, "bytes_in", "bytes read"),
        field!(RequestRecord.bytes_out, "bytes_out", "bytes written"),
        field!(
            RequestRecord.sender_tid,
            "sender_tid",
            "thread of the first write; 0 if there was none"
        ),
        field!(RequestRecord.sends, "sends", "writes"),
        field!(RequestRecord.local_port, "local_port", "TCP port at the target; 0 with a Unix socket"),
        field!(RequestRecord.remote_port, "remote_port", "TCP port at the client; 0 with a Unix socket"),
        field!(RequestRecord.remote_address, "remote_address", "address of the client"),
    ],
)
.detail(detail);

static OUTGOING: RecordRow = RecordRow::new::<OutgoingRecord>(
    "outgoing_request",
    "The target asked another service. `duration_ns` goes from the first write to the first read of the \
     reply, and `tid` is the thread that read it.",
    &[
        Field::flag(
            "unix",
            OUTGOING_UNIX,
            "the service was asked over a Unix socket, which has neither ports nor an address",
        ),
        field!(OutgoingRecord.sender_tid, "sender_tid", "thread of the first write"),
        field!(
            OutgoingRecord.remote_port,
            "remote_port",
            "TCP port of the other service; 0 with a Unix socket"
        ),
        field!(OutgoingRecord.remote_address, "remote_address", "address of the other service"),
    ],
)
.detail(outgoing_detail);

fn outgoing_detail(event: &Event) -> String {
    OutgoingRequest::from_event(event)
        .map(|request| format!("asked {}; sent by thread {}", request.peer, request.sender.0))
        .unwrap_or_default()
}

fn detail(event: &Event) -> String {
    let Some(record) = event.record::<RequestRecord>() else { return String::new() };
    let client = if event.flags & REQUEST_UNIX == 0 {
        socket_address(record.remote_address, record.remote_port as u16).to_string()
    } else {
        "a Unix socket".to_owned()
    };
    let reply = match record.sender_tid {
        0 => "not answered".to_owned(),
        sender => format!("{} B sent by thread {sender}", record.bytes_out),
    };
    format!("{} B from {client}; {reply}", record.bytes_in)
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{Address, RecordKind};

    use super::*;
    use crate::model::Value;
    use crate::probe::{decode, tests::header};

    #[test]
    fn a_record_names_the_client_and_the_threads() {
        let mut address = [0; 16];
        (address[10], address[11]) = (0xff, 0xff);
        address[12..].copy_from_slice(&[127, 0, 0, 1]);
        let mut record = RequestRecord {
            header: header(RecordKind::Request, 0),
            read_ns: 700,
            first_send_ns: 850,
            bytes_in: 78,
            bytes_out: 4_096,
            sender_tid: 13,
            sends: 2,
            local_port: 8_080,
            remote_port: 40_000,
            remote_address: Address(address),
        };
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!((event.cause(), event.record()), (None, Some(record)));
        assert_eq!(detail(&event), "78 B from 127.0.0.1:40000; 4096 B sent by thread 13");
        let field = REQUEST.fields.iter().find(|field| field.name == "remote_address");
        let field = field.expect("a field");
        let text = field.value(&event);
        assert_eq!(text, Value::Text("127.0.0.1".into()));
        let mut read_back = Event::empty(&REQUEST);
        assert!(field.put(&mut read_back, &text));
        assert_eq!(field.value(&read_back), text);
        assert!(!field.put(&mut read_back, &Value::Text("nowhere".into())));
        record.remote_address.0 = std::net::Ipv6Addr::LOCALHOST.octets();
        record.sender_tid = 0;
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(detail(&event), "78 B from [::1]:40000; not answered");
        record.header.flags = REQUEST_UNIX;
        let event = decode(bytemuck::bytes_of(&record)).expect("decodes");
        assert_eq!(detail(&event), "78 B from a Unix socket; not answered");
    }
}
