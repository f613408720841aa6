//go:build ignore

// Command runtests runs "go test -json" with its arguments and prints what a
// person wants of it: each package's result, the whole output of what failed,
// and a last line of counts. A test that skips because something is "needs …"
// missing failed, for whoever calls this has set the machine up.
//
// With -each first among them, a line for every test that passed too.
//
//	go run testenv/runtests.go -p 2 ./...
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build that failed
	Test       string
	Output     string
	Elapsed    float64
}

type key struct{ pkg, test string }

type results struct {
	out    io.Writer
	output map[key]*strings.Builder
	ended  map[key]string // action, of tests only
	broken map[string]bool
	lost   []string // names of what failed
	each   bool     // passed ones are named
}

func main() {
	host := hostFiles()
	args := os.Args[1:]
	each := len(args) > 0 && args[0] == "-each"
	if each {
		args = args[1:]
	}
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run go test:", err)
		os.Exit(2)
	}
	// go test gets the terminal's interrupt itself; we stay to count.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM)
	r := &results{out: os.Stdout, each: each, output: map[key]*strings.Builder{}, ended: map[key]string{}, broken: map[string]bool{}}
	if err := r.read(pipe); err != nil {
		fmt.Fprintln(os.Stderr, "read the output of go test:", err)
	}
	status := cmd.Wait()
	passed, failed, skipped := r.counts()
	if status != nil && failed == 0 {
		fmt.Println("go test:", status)
		failed++
	}
	for name, before := range host {
		if after := hostFiles()[name]; after != before {
			fmt.Printf("a test changed %s of this host: it was\n%s", name, before)
			r.lost = append(r.lost, name)
			failed++
		}
	}
	for _, name := range r.lost {
		fmt.Println("FAILED", name)
	}
	if passed == 0 && failed == 0 {
		fmt.Println("no test ran")
		failed++
	}
	fmt.Printf("tests: %d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 {
		os.Exit(1)
	}
}

// hostFiles are what the DHCP clients that tests start would change, if one got
// out of its namespace.
func hostFiles() map[string]string {
	files := map[string]string{}
	for _, name := range []string{"/etc/resolv.conf", "/etc/hosts", "/etc/hostname"} {
		raw, _ := os.ReadFile(name) // not every host has each
		files[name] = string(raw)
	}
	return files
}

func (r *results) read(from io.Reader) error {
	lines := bufio.NewReaderSize(from, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.out, "%s", line)
			} else {
				r.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var needs = regexp.MustCompile(`(?m)^\s*\S+\.go:\d+: needs .*$`)

func (r *results) take(e event) {
	k := key{e.Package, e.Test}
	switch e.Action {
	case "output":
		if r.output[k] == nil {
			r.output[k] = &strings.Builder{}
		}
		r.output[k].WriteString(e.Output)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "pass", "fail", "skip":
		text := ""
		if b := r.output[k]; b != nil {
			text = b.String()
			delete(r.output, k)
		}
		if e.Test == "" {
			r.endPackage(e, text)
			return
		}
		if e.Action == "skip" {
			if why := needs.FindString(text); why != "" {
				e.Action = "fail"
				text = "skipped for want of what set-up installs: " + strings.TrimSpace(why) + "\n"
			}
		}
		r.ended[k] = e.Action
		if e.Action == "pass" && r.each {
			fmt.Fprintf(r.out, "pass  %s (%.1f s)\n", e.Test, e.Elapsed)
		}
		if e.Action == "fail" {
			r.lost = append(r.lost, e.Package+" "+e.Test)
			fmt.Fprintf(r.out, "--- %s %s (%.1f s)\n%s", e.Package, e.Test, e.Elapsed, text)
		}
	}
}

func (r *results) endPackage(e event, text string) {
	switch {
	case e.Action == "fail":
		// A panic or a timeout leaves tests without an end.
		var open []string
		for k, b := range r.output {
			if k.pkg == e.Package && k.test != "" {
				open = append(open, k.test)
				text += "--- unfinished: " + k.test + "\n" + b.String()
				delete(r.output, k)
			}
		}
		if !slices.ContainsFunc(r.lost, func(l string) bool { return strings.HasPrefix(l, e.Package+" ") }) {
			r.broken[e.Package] = true
			r.lost = append(r.lost, strings.TrimSpace(e.Package+" "+strings.Join(open, " ")))
		}
		fmt.Fprintf(r.out, "%sFAIL  %-22s %.1f s\n", text, e.Package, e.Elapsed)
	case e.Action == "skip":
		fmt.Fprintf(r.out, "      %-22s no tests\n", e.Package)
	default:
		fmt.Fprintf(r.out, "ok    %-22s %.1f s\n", e.Package, e.Elapsed)
	}
}

// counts leaves out a test that only holds others, unless it failed by itself.
func (r *results) counts() (passed, failed, skipped int) {
	parents := map[key]bool{}
	lostChild := map[key]bool{}
	for k, action := range r.ended {
		for test := k.test; ; {
			i := strings.LastIndexByte(test, '/')
			if i < 0 {
				break
			}
			test = test[:i]
			parents[key{k.pkg, test}] = true
			if action == "fail" {
				lostChild[key{k.pkg, test}] = true
			}
		}
	}
	for k, action := range r.ended {
		switch {
		case parents[k] && (action != "fail" || lostChild[k]):
		case action == "pass":
			passed++
		case action == "fail":
			failed++
		default:
			skipped++
		}
	}
	return passed, failed + len(r.broken), skipped
}
