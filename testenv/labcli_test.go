package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cliLab is a lab as a user has one: everything goes through the command line.
type cliLab struct {
	t         *testing.T
	bin, root string
}

func newCLILab(t *testing.T) *cliLab {
	t.Helper()
	bin := simNeeds(t)
	return &cliLab{t, bin, t.TempDir()}
}

// run runs recast; it ends with the test.
func (l *cliLab) run(args ...string) (string, error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	cmd.Env = append(os.Environ(), "RECAST_LABS="+l.root, "RECAST_DATA="+l.t.TempDir(), "HOME="+l.root)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("recast %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (l *cliLab) must(args ...string) string {
	l.t.Helper()
	out, err := l.run(args...)
	simMust(l.t, err)
	return out
}

// lab runs a verb of recast lab.
func (l *cliLab) lab(verb string, args ...string) string {
	l.t.Helper()
	return l.must(append([]string{"lab", verb, "--root", l.root, "--name", l.name()}, args...)...)
}

func (l *cliLab) name() string { return fmt.Sprintf("cli%d", os.Getpid()) }

// faults of a machine, as scripts read them.
func (l *cliLab) faults(name string, args ...string) LabFaults {
	l.t.Helper()
	var has []LabFaults
	simMust(l.t, json.Unmarshal([]byte(l.lab("fault", append([]string{name, "-o", "json"}, args...)...)), &has))
	return has[0]
}

func (l *cliLab) until(what string, within time.Duration, ok func() bool) {
	l.t.Helper()
	end := time.Now().Add(within)
	for !ok() {
		if time.Now().After(end) {
			l.t.Fatalf("%s: not within %v", what, within)
		}
		<-time.After(200 * time.Millisecond) // each question is a process
	}
}

func (l *cliLab) explain(name string) string { return l.must("explain", name) }

// A user declares bad cables, makes others bad, and swaps boards: each has its effect,
// which is over when it is ended.
func TestLabsLinksAndBoardsGoWrongByItsCommandLine(t *testing.T) {
	l := newCLILab(t)
	file := filepath.Join(l.root, "LAB.yaml")
	simMust(t, os.WriteFile(file, []byte(`
racks:
- {name: r1, machines: 4, kind: simulated, firmware: bios}
machines:
  r1u01: {link: {loss: 0.1, duplicate: 0.1, reorder: 0.1}}
  r1u02: {link: {delay: 100ms}}
  r1u04: {bmc: redfish}
`), 0o644))
	t.Cleanup(func() {
		if t.Failed() {
			for _, file := range []string{"lab.log", "server.log"} {
				log, _ := os.ReadFile(filepath.Join(l.root, l.name(), file))
				t.Logf("%s:\n%s", file, log[max(0, len(log)-4000):])
			}
		}
		l.lab("down")
	})
	out := l.lab("up", "-f", file)
	// Each question and answer of r1u02's waits, so that it comes last of those that
	// lose nothing.
	at := func(text string) int { return strings.LastIndex(out, text) }
	if slow, fast := at("r1u02    active"), at("r1u03    active"); slow < 0 || fast < 0 || slow < fast {
		t.Errorf("the machine behind the slow link came before the other:\n%s", out)
	}
	if c := l.faults("r1u01").Link; c == nil || c.Lost == 0 || c.Twice == 0 || c.Late == 0 || c.Frames < 10*c.Lost/3 {
		t.Errorf("of the frames of the machine with a bad link %+v", c)
	}
	if c := l.faults("r1u02").Link; c == nil || c.Frames == 0 || c.Lost != 0 {
		t.Errorf("of the frames of the machine with a slow link %+v", c)
	}
	if c := l.faults("r1u03").Link; c != nil {
		t.Errorf("of the frames of a machine with a good link %+v", c)
	}
	if text := l.lab("fault"); !strings.Contains(text, "LINK") || !strings.Contains(text, " lost") {
		t.Errorf("%s", text)
	}

	t.Run("a switch port in another VLAN lets nothing through until it is mended", func(t *testing.T) {
		l := &cliLab{t, l.bin, l.root}
		if has := l.faults("r1u03", "link-vlan=100"); len(has.Faults) != 1 || has.Link == nil {
			t.Errorf("%+v", has)
		}
		l.must("power", "cycle", "r1u03")
		l.until("frames are lost", time.Minute, func() bool { c := l.faults("r1u03").Link; return c.Lost > 0 && c.Lost == c.Frames })
		if has := l.faults("r1u03", "none"); len(has.Faults) != 0 || has.Link != nil {
			t.Errorf("%+v", has)
		}
		l.must("power", "cycle", "r1u03")
	})
	for _, name := range []string{"r1u03", "r1u04"} { // behind IPMI, behind Redfish
		t.Run("a swapped board is a finding "+name, func(t *testing.T) {
			l := &cliLab{t, l.bin, l.root}
			l.until("it is looked at", 2*time.Minute, func() bool { return strings.Contains(l.must("bmc", "inventory", name), "LAB") })
			l.faults(name, "swapped-board")
			l.until("the finding", 2*time.Minute, func() bool { return strings.Contains(l.explain(name), "SWAPPED-LAB") })
			l.faults(name, "none")
			if text := l.must("bmc", "inventory", name); strings.Contains(text, "SWAPPED") {
				t.Errorf("its own board is not back: %s", text)
			}
		})
	}
}
