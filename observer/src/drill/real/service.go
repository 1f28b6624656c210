// The service of a drill. It says on which port it listens and when the first request has come, and
// writes its log when its standard input ends. Times are nanoseconds of CLOCK_MONOTONIC.
//
// No goroutine is locked to a thread: the runtime moves them, as it does in other services.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	spinNS = 1_000_000
	harmNS = 25_000_000
	share  = 0.03

	clockMonotonic = 1
	clockThread    = 3
)

// A line of the log. A request has no thread of its own, and is given one: in which queues of the runtime
// it waited for others is not known.
type entry struct {
	port             string
	number           uint64
	readNS, endNS    int64
	sleptNS, burntNS int64
}

var (
	harm string
	seed uint64

	lock     sync.Mutex
	requests uint64
	entries  []entry
)

func clock(id uintptr) int64 {
	var now syscall.Timespec
	// It does not block, so the runtime need not know about it.
	syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&now)), 0)
	return now.Nano()
}

// Uses this much CPU time.
func burn(ns int64) {
	work := 0
	for used := int64(0); used < ns; {
		thread, before := syscall.Gettid(), clock(clockThread)
		for i := 0; i < 10_000; i++ {
			work += i
		}
		after := clock(clockThread)
		// Elsewhere, both times are of two threads.
		if syscall.Gettid() == thread {
			used += after - before
		}
	}
	runtime.KeepAlive(work)
}

// The same choice for the same seed. (The mixer is SplitMix64's.)
func isChosen(number uint64) bool {
	mixed := seed + (number+1)*0x9e3779b97f4a7c15
	mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9
	mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb
	return float64((mixed^(mixed>>31))>>11)/(1<<53) < share
}

func answer(writer http.ResponseWriter) {
	writer.Header().Set("Content-Type", "text/plain")
	writer.Header().Set("Content-Length", "3")
	io.WriteString(writer, "ok\n")
}

func handle(writer http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/warm-up" {
		burn(spinNS)
		answer(writer)
		return
	}
	one := entry{readNS: clock(clockMonotonic)}
	_, one.port, _ = net.SplitHostPort(request.RemoteAddr)
	lock.Lock()
	number := requests
	requests++
	lock.Unlock()
	if number == 0 {
		fmt.Println("request")
	}
	one.number = number + 1
	burn(spinNS)
	if harm != "none" && isChosen(number) {
		begin := clock(clockMonotonic)
		if harm == "burn" {
			burn(harmNS)
			one.burntNS = harmNS
		} else {
			time.Sleep(harmNS)
			one.sleptNS = clock(clockMonotonic) - begin
		}
	}
	answer(writer)
	one.endNS = clock(clockMonotonic)
	lock.Lock()
	entries = append(entries, one)
	lock.Unlock()
}

func writeLog(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	log := bufio.NewWriter(file)
	fmt.Fprintln(log, "port,reader,worker,read_ns,begin_ns,end_ns,slept_ns,burnt_ns")
	lock.Lock()
	defer lock.Unlock()
	for _, one := range entries {
		fmt.Fprintf(log, "%s,%d,%d,%d,%d,%d,%d,%d\n", one.port, one.number, one.number,
			one.readNS, one.readNS, one.endNS, one.sleptNS, one.burntNS)
	}
	if err := log.Flush(); err != nil {
		return err
	}
	return file.Close()
}

func run(arguments []string) error {
	if len(arguments) != 4 {
		return fmt.Errorf("needs a harm, a seed, a log and a lifetime")
	}
	harm = arguments[0]
	var err error
	if seed, err = strconv.ParseUint(arguments[1], 10, 64); err != nil {
		return err
	}
	seconds, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	time.AfterFunc(time.Duration(seconds)*time.Second, func() { os.Exit(1) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		fmt.Fprintln(os.Stderr, http.Serve(listener, http.HandlerFunc(handle)))
		os.Exit(1)
	}()
	fmt.Println("listening", listener.Addr().(*net.TCPAddr).Port)
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	return writeLog(arguments[2])
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
