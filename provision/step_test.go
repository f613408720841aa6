package provision

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/bmc"
	"recast/inventory"
)

var update = flag.Bool("update", false, "write what came out as the expected transcript")

// TestTranscripts replays testdata/*.txt: a line "> event …" goes into Step, and
// what follows is what came out of it. Each file tells one machine's story.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(raw))
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(raw), got); diff != "" {
				t.Errorf("transcript differs (-want +got):\n%s", diff)
			}
		})
	}
}

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// story is the machine of a transcript.
type story struct {
	params Params
	state  State
	now    time.Time
	gate   *Gate // of what is written
}

func newStory() *story {
	p := Params{HasBMC: true, Attempts: 2, Deadlines: inventory.DefaultDeadlines, Health: 20 * time.Minute, Reports: true}
	return &story{params: p, now: t0, state: State{Status: Status{Machine: "m1", Phase: Available, Health: HealthUnknown}}}
}

var (
	genA  = inventory.DigestOf([]byte("generation a"))
	genB  = inventory.DigestOf([]byte("generation b"))
	rendA = inventory.DigestOf([]byte("rendered a"))
	imgA  = inventory.DigestOf([]byte("image"))
)

func disk(serial string) inventory.DiskID {
	return inventory.DiskID{Name: "/dev/sda", Serial: serial, Size: 4 << 30, LogicalBlockSize: 512}
}

// event reads one line of a transcript.
func (s *story) event(t *testing.T, line string) Event {
	t.Helper()
	f := strings.Fields(line)
	rest := strings.TrimSpace(strings.TrimPrefix(line, f[0]))
	switch f[0] {
	case "start":
		if f[1] == "wipe" { // start wipe S1 [quick]
			return Started{Purpose: PurposeWipe, Epoch: "e", By: "ann", Consent: &Consent{Disk: disk(f[2])}, Quick: len(f) > 3}
		}
		gen := genA
		if len(f) > 2 && f[2] == "b" {
			gen = genB
		}
		return Started{Purpose: Purpose(f[1]), Generation: gen, Rendered: rendA, Epoch: "e", By: "ann"}
	case "bmc":
		for _, a := range []Action{ActOff, ActArm, ActRestore, ActOn, ActClear} {
			if text, ok := strings.CutPrefix(rest, string(a)); ok {
				text, final := strings.CutSuffix(strings.TrimPrefix(strings.TrimSpace(text), "error "), " final")
				if text == "ok" {
					text = ""
				}
				text, next, _ := strings.Cut(text, " next ")
				return BMCDone{Action: a, Err: text, Final: final, Next: next}
			}
		}
	case "script":
		return BootServed{}
	case "claim":
		return Claimed{Claim: ClaimState{BootID: f[1], UUID: "u1", Until: s.now.Add(LeaseTime)}, Resume: len(f) > 2}
	case "inventory":
		d := DiskDecision{Verdict: DiskVerdict(f[1]), Disk: disk("S1"), Reason: strings.Join(f[2:], " "), Gate: s.gate}
		if d.Verdict == DiskWipe && len(f) > 2 {
			d.Disk = disk(f[2])
		}
		if d.Verdict == DiskAdopt {
			d.Marker = inventory.Marker{Machine: "m1", Generation: genA, Rendered: rendA, Attempt: 1, Write: "e.1"}
		}
		return Inspected{Decision: d}
	case "report":
		r := inventory.Report{Step: inventory.AgentStep(f[1]), Total: 100}
		for _, w := range f[2:] {
			switch {
			case w == "erased":
				r.Erased = true
			case strings.HasPrefix(w, "done="):
				fmt.Sscanf(w, "done=%d", &r.Done)
			case w == "blank":
				r.Blank = disk("").Size
			case w == "badframe":
				r.BadFrame = new(int)
			default:
				r.Error += w + " "
			}
		}
		r.Error = strings.TrimSpace(r.Error)
		ev := Reported{Report: r}
		if r.BadFrame != nil {
			ev.Damaged = imgA
		}
		return ev
	case "running":
		g := genA
		if f[1] == "b" {
			g = genB
		}
		r := inventory.BootReport{Machine: "m1", Generation: g, Rendered: rendA, Write: f[2], BootID: "b1", Hostname: "m1"}
		if len(f) > 3 {
			r.BootID = f[3]
		}
		return Running{Report: r}
	case "looked": // looked on|off [serial]
		ev := Looked{Power: bmc.PowerState(f[1])}
		if len(f) > 2 {
			ev.Board = &Board{Serial: f[2]}
		}
		return ev
	case "board": // what its BMC says when it is asked before it is told something
		return Identified{Board: Board{Serial: f[1]}}
	case "enrolled":
		return Enrolled{Board: Board{Serial: f[1], By: "ann"}}
	case "gate":
		return s.gateEvent(t, f[1:])
	case "local":
		return LocalServed{}
	case "tick":
		return Ticked{}
	case "abort":
		return Aborted{By: "ann"}
	case "hold":
		return Held{Hold{Owner: "bob", Reason: "hands in it"}}
	case "suspect":
		return Suspected{Reason: rest}
	case "reverted":
		return Reverted{}
	case "mended":
		return Mended{}
	}
	t.Fatalf("transcript: cannot read %q", line)
	return nil
}

func replay(t *testing.T, text string) string {
	t.Helper()
	s := newStory()
	var out strings.Builder
	in := bufio.NewScanner(strings.NewReader(text))
	for in.Scan() {
		line := in.Text()
		switch {
		case strings.HasPrefix(line, "#") || line == "":
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "after "):
			d, err := time.ParseDuration(strings.TrimPrefix(line, "after "))
			if err != nil {
				t.Fatal(err)
			}
			s.now = s.now.Add(d)
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "via "):
			s.params.Via = inventory.BootVia(strings.TrimPrefix(line, "via "))
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "gate "): // gate repair [kernel]: what the definition says from now on
			on, kernel, _ := strings.Cut(strings.TrimPrefix(line, "gate "), " ")
			if s.gate = storyGate(inventory.OnMismatch(on)); kernel != "" {
				s.gate.Kernel = storyKernel
			}
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "restart "):
			s.params.Restart = strings.TrimPrefix(line, "restart ")
			fmt.Fprintln(&out, line)
		case line == "no bmc":
			s.params.HasBMC = false
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "seen "):
			s.state.Status.LastSeen, s.state.Status.LastSeenAt = strings.TrimPrefix(line, "seen "), s.now
			fmt.Fprintln(&out, line)
		case line == "hold":
			s.state.Status.Hold = &Hold{Owner: "bob", Reason: "looks at it"}
			fmt.Fprintln(&out, line)
		case line == "release":
			s.state = released(s.state)
			fmt.Fprintln(&out, line)
		case line == "release --repair":
			s.state = consented(s.state, "ann", "e")
			fmt.Fprintln(&out, line)
		case line == "enforce":
			s.params.Enforce = true
			fmt.Fprintln(&out, line)
		case line == "no reporter":
			s.params.Reports = false
			fmt.Fprintln(&out, line)
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			s.take(t, &out, strings.TrimPrefix(line, "> "))
		}
	}
	return out.String()
}

func (s *story) take(t *testing.T, out *strings.Builder, line string) {
	t.Helper()
	next, actions, lines, err := Step(s.params, s.state, s.now, s.event(t, line))
	if err != nil {
		fmt.Fprintf(out, "  impossible: %v\n", err)
		return
	}
	s.state = next
	for _, l := range lines {
		fmt.Fprintf(out, "  %s: %s\n", l.Kind, l.Text)
	}
	for _, a := range actions {
		fmt.Fprintf(out, "  do: %s\n", a)
	}
	st := next.Status
	fmt.Fprintf(out, "  = %s/%s attempt %d fence %d live %t health %s evidence %s", st.Phase, st.Step, st.Attempt, next.Intent.Fence, next.Intent.Live, st.Health, st.Evidence.Level)
	if st.LastError != "" {
		fmt.Fprintf(out, " error %q", st.LastError)
	}
	if st.NextAction != "" {
		fmt.Fprintf(out, " next %q", st.NextAction)
	}
	if g := st.Gate; g != nil {
		fmt.Fprintf(out, " gate %s %s boot %d repairs %d", orDash(string(g.Step)), orDash(string(g.Verdict)), g.Boot, len(g.Repairs))
		if in := next.Intent.Gate; in != nil && in.Pass.valid(s.now) {
			fmt.Fprintf(out, " pass for %s", in.Pass.Until.Sub(s.now))
		}
		if st.Hold != nil {
			fmt.Fprintf(out, " held by %s", st.Hold.Owner)
		}
		if !g.Deadline.IsZero() {
			fmt.Fprintf(out, " in %s", g.Deadline.Sub(s.now))
		}
	}
	if left := st.Deadline.Sub(s.now); Busy(st.Phase) && left != time.Duration(s.params.Deadlines[string(st.Step)]) && st.Step != StepStarting {
		fmt.Fprintf(out, " in %s", left)
	}
	fmt.Fprintln(out)
}

// A machine that has to wait for the ramdisk is there: it neither fails for it,
// nor does each of its questions cost a write.
func TestWaitingForItsTurnFailsNoMachine(t *testing.T) {
	s := newStory()
	s.must(t, Started{Purpose: PurposeInspect, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"})
	for _, a := range []Action{ActOff, ActArm, ActOn} {
		s.must(t, BMCDone{Action: a})
	}
	limit := time.Duration(s.params.Deadlines["booting"])
	moved := 0
	for range 12 * 10 {
		before := s.state.Status.Deadline
		s.now = s.now.Add(limit / 10)
		s.must(t, BootWaits{})
		s.must(t, Ticked{})
		if st := s.state.Status; st.Step != StepBooting || st.Attempt != 1 {
			t.Fatalf("%s, %s, attempt %d: %s", st.Phase, st.Step, st.Attempt, st.LastError)
		}
		if !s.state.Status.Deadline.Equal(before) {
			moved++
		}
	}
	if moved == 0 || moved > 30 {
		t.Errorf("the deadline was moved %d times by 120 questions", moved)
	}
	s.now = s.now.Add(2 * limit)
	s.must(t, Ticked{})
	if st := s.state.Status; st.Step == StepBooting && st.Attempt == 1 {
		t.Error("a machine that asks no more is waited for")
	}
}

// A machine may ask for its script before its BMC shows it on.
func TestPowerThatIsSeenLateIsKnown(t *testing.T) {
	s := newStory()
	s.must(t, Started{Purpose: PurposeDeploy, Generation: genA, Rendered: rendA, Epoch: "e", By: "ann"})
	s.must(t, BMCDone{Action: ActOff})
	s.must(t, BMCDone{Action: ActArm})
	s.must(t, BootServed{})
	s.must(t, BMCDone{Action: ActOn})
	if st := s.state.Status; st.Step != StepClaiming || st.Power != "on" {
		t.Errorf("%s, power %q", st.Step, st.Power)
	}
	s.must(t, Aborted{By: "ann"})
	if st := s.state.Status; strings.Contains(st.NextAction, "left it off") {
		t.Errorf("next %q", st.NextAction)
	}
}

// A server that starts anew does not know what its machines were seen to do: one that is
// on its way to its system may be in the middle of its first boot, and is left alone.
func TestAServerThatStartsAnewPowerCyclesNobodyWhoStarts(t *testing.T) {
	now := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	for step, forbidden := range map[StepName]bool{StepStarting: true, StepWriting: false, StepBooting: false} {
		before := State{Status: Status{Phase: Deploying, Step: step, Deadline: now}, Intent: &Intent{Epoch: "e"}}
		after := loaded(before, "e", now)
		if after.Intent.Cycled != forbidden || before.Intent.Cycled {
			t.Errorf("%s: may be power-cycled %v, want %v", step, !after.Intent.Cycled, !forbidden)
		}
		if got := after.Status.Deadline; !got.Equal(now.Add(restartGrace)) {
			t.Errorf("%s: the deadline is %s", step, got)
		}
	}
}
