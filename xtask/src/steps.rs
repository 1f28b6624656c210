//! Steps of a longer command: a heading, the output, the time, and a table at the end.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::Command,
    sync::Mutex,
    thread,
    time::Instant,
};

use xtask_common::counts::{Counts, captured, counted};

/// The steps so far.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Done>,
}

struct Done {
    title: String,
    seconds: f64,
    counts: Counts,
    failed: bool,
}

/// Output and tests of a step. A step that runs alone prints as it goes; one that runs beside others
/// keeps its output until it ends, because the lines would mix.
#[derive(Default)]
pub(crate) struct Log {
    kept: Option<String>,
    counts: Counts,
}

type Work<'a> = Box<dyn FnOnce(&mut Log) -> Result<(), String> + Send + 'a>;

/// A step that may run beside others.
pub(crate) struct Step<'a> {
    title: String,
    work: Work<'a>,
}

/// A step that has run.
struct Ran {
    title: String,
    seconds: f64,
    log: Log,
    result: Result<(), String>,
}

impl Ran {
    /// Runs a step with this log.
    fn of(step: Step<'_>, mut log: Log) -> Self {
        let started = Instant::now();
        let result = (step.work)(&mut log);
        Self { title: step.title, seconds: started.elapsed().as_secs_f64(), log, result }
    }
}

impl Log {
    /// One that keeps the output.
    fn keeping() -> Self {
        Self { kept: Some(String::new()), ..Self::default() }
    }

    /// Prints a line.
    pub(crate) fn line(&mut self, line: &str) {
        match &mut self.kept {
            Some(text) => {
                text.push_str(line);
                text.push('\n');
            }
            None => println!("{line}"),
        }
    }

    /// Runs a command and counts its tests; its failure is the error.
    pub(crate) fn run(&mut self, command: &mut Command) -> Result<(), String> {
        match &mut self.kept {
            Some(text) => captured(command, &mut self.counts, text),
            None => counted(command, &mut self.counts),
        }
    }
}

impl<'a> Step<'a> {
    pub(crate) fn new(
        title: impl Into<String>,
        work: impl FnOnce(&mut Log) -> Result<(), String> + Send + 'a,
    ) -> Self {
        Self { title: title.into(), work: Box::new(work) }
    }

    /// A step that is one command.
    pub(crate) fn command(title: impl Into<String>, mut command: Command) -> Self {
        Self::new(title, move |log| log.run(&mut command))
    }
}

impl Steps {
    /// Runs a step alone; returns whether it succeeded.
    pub(crate) fn run(&mut self, step: Step<'_>) -> bool {
        println!("\n==> {}", step.title);
        // Commands write to the same file by themselves: the heading must come first.
        let _ = io::stdout().flush();
        self.note(Ran::of(step, Log::default()))
    }

    /// Runs a step, and another one behind it that needs little of the processors; returns whether
    /// both succeeded. The second is printed when both have ended.
    pub(crate) fn run_over(&mut self, step: Step<'_>, behind: Step<'_>) -> bool {
        println!("\n==> behind the next step: {}", behind.title);
        self.run_beside(vec![behind], || {}, |steps| steps.run(step))
    }

    /// Runs steps one after the other with what the processors have left, while `rest` runs its own.
    /// They are printed when all have ended.
    pub(crate) fn run_beneath(&mut self, steps: Vec<Step<'_>>, rest: impl FnOnce(&mut Self)) {
        let titles: Vec<_> = steps.iter().map(|step| step.title.as_str()).collect();
        println!("\n==> beneath the next steps, printed after them: {}", titles.join(", "));
        self.run_beside(steps, use_leftovers, |steps| {
            rest(steps);
            true
        });
    }

    /// Runs steps in a thread that `prepare` has prepared, while `rest` runs; whether all of it
    /// succeeded.
    fn run_beside(
        &mut self,
        steps: Vec<Step<'_>>,
        prepare: fn(),
        rest: impl FnOnce(&mut Self) -> bool,
    ) -> bool {
        thread::scope(|scope| {
            let beside = scope.spawn(move || {
                prepare();
                steps.into_iter().map(|step| Ran::of(step, Log::keeping())).collect::<Vec<_>>()
            });
            let good = rest(self);
            match beside.join() {
                Ok(ran) => ran.into_iter().fold(good, |good, ran| self.print(ran) && good),
                // A panic of a step is a failure of the whole.
                Err(_) => self.run(Step::new("steps beside", |_| Err("a step panicked".into()))),
            }
        })
    }

    /// Runs lanes side by side, the steps of each lane one after the other. A step that fails does not
    /// stop the steps after it. The first lane is the longest: the others leave it the processor.
    pub(crate) fn side_by_side(&mut self, lanes: Vec<Vec<Step<'_>>>) {
        let titles: Vec<_> = lanes.iter().flatten().map(|step| step.title.as_str()).collect();
        println!("\n==> side by side, each printed when it ends: {}", titles.join(", "));
        let steps = Mutex::new(self);
        thread::scope(|scope| {
            for (index, lane) in lanes.into_iter().enumerate() {
                let steps = &steps;
                scope.spawn(move || {
                    if index > 0 {
                        // Of this thread and what it starts. Without it everything takes longer.
                        let _ = rustix::process::nice(10);
                    }
                    for step in lane {
                        let ran = Ran::of(step, Log::keeping());
                        let mut steps =
                            steps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        steps.print(ran);
                    }
                });
            }
        });
    }

    /// Prints a step that ran beside others.
    fn print(&mut self, ran: Ran) -> bool {
        println!("\n==> {}", ran.title);
        print!("{}", ran.log.kept.as_deref().unwrap_or_default());
        self.note(ran)
    }

    fn note(&mut self, ran: Ran) -> bool {
        let Ran { title, seconds, log, result } = ran;
        println!("    {seconds:.1} s");
        let mut counts = log.counts;
        if let Err(message) = &result {
            println!("    FAILED: {message}");
            // A step that failed without a failed test (a lint, a crash of a test program) counts as
            // one failure, so that the last line never says "0 failed" of a run that failed.
            counts.failed = counts.failed.max(1);
        }
        let _ = io::stdout().flush();
        self.done.push(Done { title, seconds, counts, failed: result.is_err() });
        result.is_ok()
    }

    /// Prints the last lines; returns whether everything succeeded.
    pub(crate) fn finish(&self, started: Instant) -> bool {
        let (text, failed) = self.summary(started.elapsed().as_secs_f64());
        print!("{text}");
        failed == 0
    }

    fn summary(&self, seconds: f64) -> (String, u64) {
        let mut text = String::from("\n==> summary\n\n seconds  passed  failed  step\n");
        let mut sum = Counts::default();
        for done in &self.done {
            sum.add(&done.counts);
            let Counts { passed, failed } = done.counts;
            let mark = if done.failed { "  <- FAILED" } else { "" };
            let Done { title, seconds, .. } = done;
            let _ = writeln!(text, "{seconds:>8.1}  {passed:>6}  {failed:>6}  {title}{mark}");
        }
        let _ = writeln!(text, "{seconds:>8.1}  in all; some steps ran side by side\n");
        let _ = writeln!(text, "{} passed, {} failed", sum.passed, sum.failed);
        (text, sum.failed)
    }
}

/// This thread, and what it starts, has a processor only while nothing else wants it (`SCHED_IDLE`,
/// sched(7)): a thread that measures takes it back at once.
fn use_leftovers() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters live through the call, which concerns this thread only. Should the kernel
    // refuse, the steps run as others do.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn crash_of_a_test_program_is_a_failure() {
        let mut steps = Steps::default();
        let crash = shell("echo 'test result: ok. 1 passed; 0 failed'; kill -SEGV $$");
        assert!(!steps.run(Step::command("crash", crash)));
        assert!(!steps.run(Step::new("lint", |_| Err("bad".to_owned()))));
        assert!(steps.run(Step::new("fine", |_| Ok(()))));
        let (text, failed) = steps.summary(1.0);
        assert_eq!(failed, 2);
        assert!(text.ends_with("\n1 passed, 2 failed\n"), "{text}");
        assert_eq!(text.matches("<- FAILED").count(), 2, "{text}");
        assert!(!steps.finish(Instant::now()));
    }

    #[test]
    fn a_step_runs_while_another_is_behind_it() {
        let mut steps = Steps::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        // It ends only if the other runs meanwhile.
        let step = Step::new("step", move |_| receiver.recv().map_err(|error| error.to_string()));
        let behind =
            Step::new("behind", move |_| sender.send(()).map_err(|error| error.to_string()));
        assert!(steps.run_over(step, behind));
        let fails = || Step::new("fails", |_| Err("bad".to_owned()));
        assert!(!steps.run_over(fails(), Step::new("fine", |_| Ok(()))));
        assert!(!steps.run_over(Step::new("fine", |_| Ok(())), fails()));
        assert_eq!(steps.summary(0.0).1, 2);
    }

    #[test]
    fn steps_beneath_others_use_what_is_left() {
        let mut steps = Steps::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        // The field policy of proc_pid_stat(5), counted from behind the name; 5 is SCHED_IDLE.
        let policy = shell("test $(sed 's/.*) //' /proc/self/stat | cut -d' ' -f39) = 5");
        let beneath = vec![
            Step::new("waits", move |_| receiver.recv().map_err(|error| error.to_string())),
            Step::command("policy", policy),
            Step::new("fails", |_| Err("bad".to_owned())),
        ];
        steps.run_beneath(beneath, |steps| {
            assert!(steps.run(Step::new("other", move |_| {
                sender.send(()).map_err(|error| error.to_string())
            })));
        });
        let (text, failed) = steps.summary(0.0);
        assert_eq!(failed, 1, "{text}");
        let order = ["other", "waits", "policy", "fails"].map(|title| text.find(title));
        assert!(order.is_sorted() && order.iter().all(Option::is_some), "{text}");
    }

    #[test]
    fn lanes_run_at_the_same_time_and_each_in_its_order() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut steps = Steps::default();
        let order = Mutex::new(Vec::new());
        let push = &|name: &'static str| order.lock().expect("no panic").push(name);
        steps.side_by_side(vec![
            vec![
                // It ends only if the other lane runs meanwhile.
                Step::new("waits", move |_| {
                    receiver.recv().map_err(|error| error.to_string())?;
                    push("waits");
                    Ok(())
                }),
                Step::new("after a failure", |_| Err("bad".to_owned())),
                Step::new("last", move |log| {
                    push("last");
                    log.run(&mut shell("echo 'test result: ok. 2 passed; 0 failed' >&2"))
                }),
            ],
            vec![Step::new("answers", move |log| {
                log.line("a line");
                sender.send(()).map_err(|error| error.to_string())
            })],
        ]);
        assert_eq!(order.into_inner().expect("no panic"), ["waits", "last"]);
        let (text, failed) = steps.summary(0.0);
        assert_eq!(failed, 1, "{text}");
        assert!(text.contains("2 passed, 1 failed"), "{text}");
    }
}
