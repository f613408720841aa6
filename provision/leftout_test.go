package provision

import (
	"strings"
	"testing"
)

// TestExplainNamesWhyAMachineIsLeftOut: not only that another generation is wanted.
func TestExplainNamesWhyAMachineIsLeftOut(t *testing.T) {
	for _, c := range []struct{ name, from, to, missing, next string }{
		{"protected", "labels: {rack: r}}\nspec:", "labels: {rack: r}}\nspec:\n  protected: true", "is protected", "take protected: true out"},
		{"no disk matches", "minSize: 16MiB", "serial: NONE", "choose a disk", "correct disk.select"},
		{"never written", "", "", "would be erased for the first time", "apply with --erase m1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, 1)
			y := s.yaml(true)
			s.apply(y, "m1")
			s.await("m1", Deploying, StepBooting)
			if err := s.Abort(t.Context(), "m1", "ann"); err != nil {
				t.Fatal(err)
			}
			m := s.machine("m1")
			m.mu.Lock()
			facts := testFacts(1, testUUID(1))
			now := m.state
			now.Status.Facts = &facts
			m.put(now)
			m.mu.Unlock()
			s.apply(strings.Replace(y, c.from, c.to, 1))
			x, err := s.Explain(t.Context(), "m1")
			if err != nil || !strings.Contains(x.Missing, c.missing) || !strings.Contains(x.Next, c.next) {
				t.Errorf("missing %q, next %q, %v", x.Missing, x.Next, err)
			}
			p, err := s.plan(s.Set(), nil)
			if err != nil || len(p.Entries) != 1 || p.Entries[0].WriteBytes != 0 || p.Entries[0].FetchBytes != 0 || p.Entries[0].PowerCycles != 0 {
				t.Errorf("what is left out moves no byte: %+v, %v", p.Entries, err)
			}
		})
	}
}
