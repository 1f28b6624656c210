// The service of a drill. It says on which port it listens and when the first request has come, and
// writes its log when its standard input ends. Times are nanoseconds of CLOCK_MONOTONIC.

import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.File;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintWriter;
import java.io.RandomAccessFile;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

public final class Service {
    private static final int THREADS = 4;
    private static final long SPIN_NS = 1_000_000;
    private static final long HARM_NS = 25_000_000;
    private static final double SHARE = 0.03;
    private static final byte[] ANSWER = "ok\n".getBytes(StandardCharsets.US_ASCII);

    private static final ThreadMXBean TIMES = ManagementFactory.getThreadMXBean();
    private static final AtomicLong REQUESTS = new AtomicLong();
    private static final AtomicInteger WORKERS = new AtomicInteger();
    private static final ConcurrentLinkedQueue<long[]> ENTRIES = new ConcurrentLinkedQueue<>();
    private static final ThreadLocal<Worker> WORKER = ThreadLocal.withInitial(Worker::new);

    private static String harm;
    private static long seed;
    /** Waits of the thread that waits for requests and hands them to the workers. */
    private static Waits dispatcher;

    /** How long a thread has waited for a CPU, as the scheduler counts it. */
    private static final class Waits {
        private final RandomAccessFile schedstat;
        private final byte[] text = new byte[96];
        private long before;

        Waits(String thread) {
            RandomAccessFile opened = null;
            try {
                opened = new RandomAccessFile("/proc/" + thread + "/schedstat", "r");
            } catch (IOException error) {
                System.err.println("waits for a CPU are not known: " + error);
            }
            schedstat = opened;
            newly();
        }

        /** Nanoseconds since the last call. */
        synchronized long newly() {
            if (schedstat == null) {
                return 0;
            }
            try {
                schedstat.seek(0);
                int length = schedstat.read(text);
                String[] fields = new String(text, 0, length, StandardCharsets.US_ASCII).split(" ");
                long all = Long.parseLong(fields[1]);
                long since = all - before;
                before = all;
                return since;
            } catch (IOException error) {
                return 0;
            }
        }
    }

    private static final class Worker {
        final int number = WORKERS.incrementAndGet();
        final Waits waits = new Waits("thread-self");
    }

    public static void main(String[] arguments) throws Exception {
        harm = arguments[0];
        seed = Long.parseUnsignedLong(arguments[1]);
        HttpServer server =
            HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0);
        server.setExecutor(Executors.newFixedThreadPool(THREADS));
        server.createContext("/", Service::handle);
        server.start();
        dispatcher = dispatcherWaits();
        System.out.println("listening " + server.getAddress().getPort());
        endAfter(Long.parseLong(arguments[3]));
        while (System.in.read() != -1) {
            // Nobody writes to it.
        }
        writeLog(arguments[2]);
        Runtime.getRuntime().halt(0);
    }

    private static Waits dispatcherWaits() throws IOException {
        File[] tasks = new File("/proc/self/task").listFiles();
        for (File task : tasks == null ? new File[0] : tasks) {
            String name = Files.readString(task.toPath().resolve("comm")).trim();
            if (name.equals("HTTP-Dispatcher")) {
                return new Waits("self/task/" + task.getName());
            }
        }
        return null;
    }

    private static void endAfter(long seconds) {
        Thread end = new Thread(() -> {
            try {
                Thread.sleep(seconds * 1000);
            } catch (InterruptedException error) {
                // Then at once.
            }
            Runtime.getRuntime().halt(1);
        });
        end.setDaemon(true);
        end.start();
    }

    private static void handle(HttpExchange exchange) throws IOException {
        Worker worker = WORKER.get();
        if (exchange.getRequestURI().getPath().equals("/warm-up")) {
            burn(SPIN_NS);
            answer(exchange);
            worker.waits.newly();
            return;
        }
        long read = System.nanoTime();
        // One after the other: the dispatcher waits before it can wake the worker.
        long readWait = worker.waits.newly() + (dispatcher == null ? 0 : dispatcher.newly());
        long number = REQUESTS.getAndIncrement();
        if (number == 0) {
            System.out.println("request");
        }
        long slept = 0;
        long burnt = 0;
        burn(SPIN_NS);
        if (!harm.equals("none") && isChosen(number)) {
            if (harm.equals("burn")) {
                long begin = TIMES.getCurrentThreadCpuTime();
                burn(HARM_NS);
                burnt = TIMES.getCurrentThreadCpuTime() - begin;
            } else {
                long begin = System.nanoTime();
                try {
                    Thread.sleep(HARM_NS / 1_000_000);
                } catch (InterruptedException error) {
                    // What it slept is measured.
                }
                slept = System.nanoTime() - begin;
            }
        }
        answer(exchange);
        long end = System.nanoTime();
        ENTRIES.add(new long[] {
            exchange.getRemoteAddress().getPort(), worker.number, worker.number, read, read, end,
            readWait, worker.waits.newly(), slept, burnt,
        });
    }

    private static void answer(HttpExchange exchange) throws IOException {
        exchange.sendResponseHeaders(200, ANSWER.length);
        try (OutputStream body = exchange.getResponseBody()) {
            body.write(ANSWER);
        }
    }

    /** Uses this much CPU time. */
    private static void burn(long ns) {
        long end = TIMES.getCurrentThreadCpuTime() + ns;
        while (TIMES.getCurrentThreadCpuTime() < end) {
            Thread.onSpinWait();
        }
    }

    /** The same choice for the same seed. (The mixer is SplitMix64's.) */
    private static boolean isChosen(long number) {
        long mixed = seed + (number + 1) * 0x9e3779b97f4a7c15L;
        mixed = (mixed ^ (mixed >>> 30)) * 0xbf58476d1ce4e5b9L;
        mixed = (mixed ^ (mixed >>> 27)) * 0x94d049bb133111ebL;
        return ((mixed ^ (mixed >>> 31)) >>> 11) / (double) (1L << 53) < SHARE;
    }

    private static void writeLog(String path) throws IOException {
        try (PrintWriter log = new PrintWriter(path, StandardCharsets.US_ASCII)) {
            log.println(
                "port,reader,worker,read_ns,begin_ns,end_ns,read_wait_ns,waited_ns,slept_ns,burnt_ns");
            for (long[] entry : ENTRIES) {
                StringBuilder line = new StringBuilder();
                for (long field : entry) {
                    line.append(line.length() == 0 ? "" : ",").append(field);
                }
                log.println(line);
            }
        }
    }
}
