package testenv

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRestartsAreFiveAMinuteAtMost(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	var restarts []time.Time
	at := now
	for range 50 { // a server that ends at once
		at = at.Add(restartWait(restarts, at))
		restarts = append(restarts, at)
	}
	for i, r := range restarts {
		if n := i + labRestarts; n < len(restarts) && restarts[n].Sub(r) < time.Minute {
			t.Fatalf("restarts %d to %d within %v", i, n, restarts[n].Sub(r))
		}
	}
	if got := restarts[labRestarts-1].Sub(now); got > time.Second {
		t.Errorf("the first ones took %v", got)
	}
	if got := restartWait(restarts, at.Add(time.Hour)); got != labRestartSoon {
		t.Errorf("after an hour %v", got)
	}
}

// kill -9 by hand is what an operator tries in a lab.
func TestServerOfALabIsStartedAgainAfterKill(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var log strings.Builder
	var running *RackServer
	start := func() (*RackServer, error) {
		cmd := exec.Command("sleep", "600")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		running = newRackServer("", cmd)
		return running, nil
	}
	var told []LabServer
	tell := func(s LabServer) error {
		told = append(told, s)
		switch {
		case s.PID != 0 && s.PID != running.PID():
			t.Errorf("told pid %d, runs %d", s.PID, running.PID())
		case s.PID != 0 && s.Restarts == 1:
			cancel() // it runs again
		case s.PID != 0:
			_ = running.cmd.Process.Kill()
		}
		return nil
	}
	if err := keepServer(ctx, start, tell, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
		t.Fatal(err)
	}
	defer running.Kill()
	if len(told) != 3 || told[1].PID != 0 || told[2].Restarts != 1 || told[2].PID == told[0].PID || told[2].How != "signal: killed" || told[2].Ended.IsZero() {
		t.Errorf("told %+v", told)
	}
	if running.Err() != nil {
		t.Errorf("the second server ended: %v", running.Err())
	}
	if !strings.Contains(log.String(), "started again") || !strings.Contains(log.String(), "signal: killed") {
		t.Errorf("log %q", &log)
	}
	if text := told[2].String(); !strings.Contains(text, "restarts 1") || !strings.Contains(text, "signal: killed") {
		t.Errorf("%q", text)
	}
}

func TestResumedLabKeepsItsDeclarations(t *testing.T) {
	dir := t.TempDir()
	keep := func() string {
		t.Helper()
		if err := keepDeclarations(dir, "made\n"); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(LabYAML(dir))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if got := keep(); got != "made\n" {
		t.Errorf("at first %q", got)
	}
	if err := os.WriteFile(LabYAML(dir), []byte("edited\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := keep(); got != "edited\n" {
		t.Errorf("after an edit %q", got)
	}
	// A name that leads elsewhere is neither written through nor kept.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for how, lead := range map[string]func(string, string) error{"symbolic": os.Symlink, "hard": os.Link} {
		if err := os.Remove(LabYAML(dir)); err != nil {
			t.Fatal(err)
		}
		if err := lead(victim, LabYAML(dir)); err != nil {
			t.Fatal(err)
		}
		if got := keep(); got != "made\n" {
			t.Errorf("behind a %s link %q", how, got)
		}
	}
	// Nor the folder itself.
	elsewhere := t.TempDir()
	if err := os.RemoveAll(LabUser(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, LabUser(dir)); err != nil {
		t.Fatal(err)
	}
	if got := keep(); got != "made\n" {
		t.Errorf("behind a linked folder %q", got)
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) != 0 {
		t.Errorf("written elsewhere: %v (%v)", left, err)
	}
	if raw, err := os.ReadFile(victim); err != nil || string(raw) != "other\n" {
		t.Errorf("the victim holds %q (%v)", raw, err)
	}
}
