//go:build ignore

// Command fuzzrun fuzzes the boot plane, or all that has a fuzz target, one for each
// processor at a time, one worker each.
//
//	go run testenv/fuzzrun.go -for 20s              each target for that long, from its seeds alone
//	go run testenv/fuzzrun.go -long [dhcp tftp …]   each target, or those of the packages, for an hour
//
// The hour is by the clock, with at least leastCPU of it on a processor: it runs at
// idle priority, and on a busy machine goes on until it has had that. It
// comes in slices, after each of which testenv/LAST-FUZZ-RUN.txt says how far it
// has come; what was interrupted goes on from there, with the inputs found so far.
// -fresh begins anew. A finding ends the run, and stays in the package's
// testdata/fuzz until it has a name that says what it does.
package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// bootPlane is what reads strangers' bytes before a machine has proved anything,
// what it answers them, and what reads the loaders that others signed, the firmware's
// boot entries and the host's firewall; what a machine's TPM says; the file systems of an
// image; and a BMC's answers.
var bootPlane = []target{
	{"syslog", "FuzzSyslog"},
	{"capture", "FuzzChoose"},
	{"tftp", "FuzzPacket"},
	{"ipxe", "FuzzScript"},
	{"ipxe", "FuzzReadBinary"},
	{"agent", "FuzzNetworkBytes"},
	{"agent", "FuzzLoadOption"},
	{"image", "FuzzCheckUnified"},
	{"image", "FuzzFindFile"},
	{"tpm", "FuzzVerify"},
	{"cmd/recast", "FuzzParseRulesets"},
	{"dhcp", "FuzzPacket"},
	{"dhcp", "FuzzPacket6"},
	{"dhcp", "FuzzFrames"},
	{"bmc", "FuzzRedfishAnswers"},
	{"bmc", "FuzzIPMIGuard"},
}

// onlyLong are all the others, which have their hour with -long: the other parsers of
// what BMCs say first.
var onlyLong = []target{
	{"bmc", "FuzzExposure"},
	{"bmc", "FuzzExtendedInfo"},
	{"bmc", "FuzzFRU"},
	{"bmc", "FuzzNextEvent"},
	{"bmc", "FuzzParseURL"},
	{"bmc", "FuzzRedfishBoot"},
	{"bmc", "FuzzRedfishTask"},
	{"bmc", "FuzzSELRecord"},
	{"bmc", "FuzzSOL"},
	{"fat", "FuzzRead"},
	{"pack", "FuzzDecodeChunk"},
	{"pack", "FuzzDifference"},
	{"pack", "FuzzIndex"},
	{"pack", "FuzzLayout"},
	{"pack", "FuzzManifest"},
	{"agent", "FuzzDMI"},
	{"agent", "FuzzHolds"},
	{"agent", "FuzzReportConfig"},
	{"console", "FuzzRedact"},
	{"inventory", "FuzzCanonical"},
	{"inventory", "FuzzHint"},
	{"inventory", "FuzzParse"},
	{"inventory", "FuzzSubstitution"},
	{"store", "FuzzCheckPages"},
	{"store", "FuzzReadBackup"},
	{"image", "FuzzModule"},
	{"image", "FuzzUnpack"},
	{"image", "FuzzVerity"},
	{"cmd/recast", "FuzzConfig"},
	{"testenv", "FuzzEFIVariables"},
	{"testenv", "FuzzIPMILogin"},
	{"testenv", "FuzzModuleNeeds"},
	{"testenv", "FuzzNBD"},
	{"testenv", "FuzzParseLabFile"},
	{"testenv", "FuzzRedfishOverride"},
}

var all = slices.Concat(bootPlane, onlyLong)

const (
	stateFile = "testenv/LAST-FUZZ-RUN.txt"
	hour      = time.Hour
	leastCPU  = 10 * time.Minute
)

type target struct{ pkg, name string }

func (t target) String() string { return t.pkg + " " + t.name }

// row is what is known of a target.
type row struct {
	cpu, wall   time.Duration // of the worker
	execs, new  int64
	findings    int
	first, last string // commits
	at          time.Time
}

var (
	brief = flag.Duration("for", 0, "fuzz each target for so long and keep nothing")
	long  = flag.Bool("long", false, "fuzz each target until its hour is full")
	slice = flag.Duration("slice", 10*time.Minute, "with -long, save so often")
	round = flag.Bool("round", false, "with -long, end after one slice")
	fresh = flag.Bool("fresh", false, "with -long, begin the hours anew")

	parallel = flag.Int("parallel", runtime.NumCPU(), "so many targets at a time")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if (*brief > 0) == *long {
		return fmt.Errorf("say either -for TIME or -long")
	}
	of := bootPlane
	if *long {
		of = all
	}
	targets := slices.DeleteFunc(slices.Clone(of), func(t target) bool {
		return flag.NArg() > 0 && !slices.Contains(flag.Args(), t.pkg)
	})
	dir, err := os.MkdirTemp("", "recast-fuzz-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	f := &fuzzer{bin: dir, corpus: filepath.Join(dir, "corpus"), built: map[string]bool{}}
	if !*long {
		if err := f.build(ctx, targets); err != nil {
			return err
		}
		return f.each(ctx, targets, *brief, func(t target, r row) {
			if r.findings > 0 {
				return
			}
			fmt.Printf("ok    %-24s %9d executions, %d new inputs\n", t, r.execs, r.new)
		})
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	f.corpus = filepath.Join(cache, "recast-fuzz")
	rows, err := load()
	if err != nil {
		return err
	}
	if *fresh {
		for _, t := range targets {
			delete(rows, t)
		}
	}
	commit := describe(ctx)
	for ctx.Err() == nil {
		var left []target
		for _, t := range targets {
			if rows[t].wall < hour || rows[t].cpu < leastCPU {
				left = append(left, t)
			}
		}
		if len(left) == 0 {
			fmt.Println("every target has had its hour")
			return nil
		}
		left = left[:min(*parallel, len(left))]
		if err := f.build(ctx, left); err != nil {
			return err
		}
		var mu sync.Mutex
		var unsaved error
		err := f.each(ctx, left, *slice, func(t target, got row) {
			mu.Lock()
			defer mu.Unlock()
			r := rows[t]
			r.cpu, r.wall, r.execs, r.new, r.findings = r.cpu+got.cpu, r.wall+got.wall, r.execs+got.execs, r.new+got.new, r.findings+got.findings
			r.first, r.last, r.at = cmp.Or(r.first, commit), commit, time.Now()
			rows[t] = r
			fmt.Printf("%s  %-24s %5.1f of 60 minutes, %.1f of CPU, %d executions, %d findings\n", r.at.UTC().Format(time.TimeOnly), t, r.wall.Minutes(), r.cpu.Minutes(), r.execs, r.findings)
			unsaved = cmp.Or(unsaved, save(rows))
		})
		if err = cmp.Or(err, unsaved); err != nil || *round {
			return err
		}
	}
	return nil
}

// fuzzer runs test binaries that are built for it.
type fuzzer struct {
	bin, corpus string
	built       map[string]bool
}

// build makes one binary for each package.
func (f *fuzzer) build(ctx context.Context, targets []target) error {
	for _, t := range targets {
		if f.built[t.pkg] {
			continue
		}
		f.built[t.pkg] = true
		// The pattern is what makes the compiler count the branches.
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-fuzz", "^"+t.name+"$", "-o", filepath.Join(f.bin, t.pkg), "./"+t.pkg)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", t.pkg, err)
		}
	}
	return nil
}

// each fuzzes the targets for a time, so many at once, and tells of each. It stops
// at the first finding.
func (f *fuzzer) each(ctx context.Context, targets []target, d time.Duration, tell func(target, row)) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var work sync.WaitGroup
	places := make(chan bool, *parallel)
	for _, t := range targets {
		places <- true
		if ctx.Err() != nil {
			break
		}
		work.Go(func() {
			defer func() { <-places }()
			r, err := f.fuzz(ctx, t, d)
			if err == nil || r.findings > 0 {
				tell(t, r)
			}
			if err != nil {
				stop(err)
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

var (
	progress = regexp.MustCompile(`execs: (\d+) .*new interesting: (\d+)`)
	finding  = regexp.MustCompile(`Failing input written to (\S+)`)
)

// fuzz one target for a time, or until the context ends, which is no error.
func (f *fuzzer) fuzz(ctx context.Context, t target, d time.Duration) (row, error) {
	var r row
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, t.pkg), "-test.run", "^$", "-test.fuzz", "^"+t.name+"$", "-test.fuzztime", d.String(),
		"-test.parallel", "1", "-test.fuzzcachedir", filepath.Join(f.corpus, t.pkg), "-test.fuzzminimizetime", "100x")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	cmd.Dir = t.pkg
	// One processor, or the runtime's idle ones would be counted as work.
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return r, err
	}
	ended, own := make(chan error, 1), time.Duration(0)
	go func() { ended <- cmd.Wait() }()
	var err error
	for running := true; running; {
		select {
		case err = <-ended:
			running = false
		case <-time.After(time.Second):
			own = max(own, selfTime(cmd.Process.Pid))
		}
	}
	r.wall = time.Since(began)
	// All that it waited for, the worker, less what it did itself.
	r.cpu = max(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()-own, 0)
	if all := progress.FindAllSubmatch(out.Bytes(), -1); all != nil {
		r.execs, _ = strconv.ParseInt(string(all[len(all)-1][1]), 10, 64)
		r.new, _ = strconv.ParseInt(string(all[len(all)-1][2]), 10, 64)
	}
	if m := finding.FindSubmatch(out.Bytes()); m != nil {
		r.findings = 1
		return r, fmt.Errorf("%s found something:\n%s\nThe input is in %s: name it by what it does, mend that, go on", t, out.Bytes(), filepath.Join(t.pkg, string(m[1])))
	}
	// At the end of its time go test may take its own deadline for a failure.
	if err != nil && ctx.Err() == nil && !(r.execs > 0 && bytes.Contains(out.Bytes(), []byte("context deadline exceeded"))) {
		return r, fmt.Errorf("%s: %w\n%s", t, err, out.Bytes())
	}
	return r, nil
}

// selfTime is the CPU time of a process without its children, from proc(5).
func selfTime(pid int) time.Duration {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // it may have ended
	_, rest, _ := bytes.Cut(b, []byte(") "))
	var ticks time.Duration
	for i, field := range strings.Fields(string(rest)) {
		if i == 11 || i == 12 { // utime, stime
			n, _ := strconv.Atoi(field)
			ticks += time.Duration(n)
		}
	}
	return ticks * time.Second / 100 // USER_HZ
}

// describe the commit that is fuzzed.
func describe(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	commit := strings.TrimSpace(string(out))
	if exec.CommandContext(ctx, "git", "diff", "--quiet", "HEAD", "--", ".", ":!"+stateFile).Run() != nil {
		commit += "-dirty"
	}
	return commit
}

const stateHead = "make fuzz-long: each target for an hour by the clock, 10 minutes of CPU at least; minutes so far of both."

func load() (map[target]row, error) {
	rows := map[target]row{}
	b, err := os.ReadFile(stateFile)
	if os.IsNotExist(err) {
		return rows, nil
	}
	if err != nil {
		return nil, err
	}
	for i, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if i < 3 || len(f) == 0 {
			continue
		}
		var r row
		var minutes, clock float64
		if len(f) != 9 {
			return nil, fmt.Errorf("read %s: line %d has %d fields", stateFile, i+1, len(f))
		}
		_, err := fmt.Sscan(strings.Join(f[2:7], " "), &minutes, &clock, &r.execs, &r.new, &r.findings)
		if err == nil {
			r.at, err = time.Parse(time.RFC3339, f[8])
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: line %d: %w", stateFile, i+1, err)
		}
		r.cpu, r.wall = time.Duration(minutes*float64(time.Minute)), time.Duration(clock*float64(time.Minute))
		r.first, r.last, _ = strings.Cut(f[7], "..")
		rows[target{f[0], f[1]}] = r
	}
	return rows, nil
}

func save(rows map[target]row) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n", stateHead)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "package\ttarget\tCPU\tclock\texecutions\tnew inputs\tfindings\tcommits\tlast")
	for _, t := range all {
		if r, ok := rows[t]; ok {
			fmt.Fprintf(w, "%s\t%s\t%.2f\t%.2f\t%d\t%d\t%d\t%s..%s\t%s\n", t.pkg, t.name, r.cpu.Minutes(), r.wall.Minutes(), r.execs, r.new, r.findings, r.first, r.last, r.at.UTC().Format(time.RFC3339))
		}
	}
	w.Flush()
	if err := os.WriteFile(stateFile+".new", b.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(stateFile+".new", stateFile)
}
