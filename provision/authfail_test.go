package provision

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"recast/bmc"
	"recast/store"
)

func TestARefusedPasswordNamesTheSecretToSet(t *testing.T) {
	s := newSite(t, 1)
	s.bmcs["10.9.0.1"].SetFault(bmc.FaultAuth)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Failed, StepNone)
	if x, err := s.Explain(t.Context(), "m1"); err != nil || x.Next != "recast secret set rack-bmc, then: recast retry m1" {
		t.Errorf("next %q, %v", x.Next, err)
	}
	if _, err := s.Power(t.Context(), "m1", "ann", "status", false); err == nil || !strings.HasSuffix(err.Error(), "; recast secret set rack-bmc") {
		t.Errorf("power says %v", err)
	}
}

// onBMC are the findings about a machine's BMC.
func (s *site) onBMC(name string) (findings []string) {
	for _, f := range s.machine(name).snapshot().Status.Findings {
		if strings.HasPrefix(f, refusalPrefix) {
			findings = append(findings, f)
		}
	}
	return findings
}

func TestARefusedPasswordIsAFindingAndNotTriedAgainUntilItIsSet(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.SetFault(bmc.FaultAuth)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Failed, StepNone)
	fake.SetFault(bmc.FaultNone) // as far as we know it would refuse still
	for range 3 {
		if _, err := s.Power(t.Context(), "m1", "ann", "status", false); err == nil || !strings.Contains(err.Error(), "not tried again until the credential changes") {
			t.Errorf("power says %v", err)
		}
		if _, err := s.Explain(t.Context(), "m1"); err != nil {
			t.Error(err)
		}
	}
	if n := fake.Count("dial"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	if f := s.onBMC("m1"); len(f) != 1 || !strings.Contains(f[0], bmc.ErrAuth.Error()) || !strings.Contains(f[0], "not tried again") ||
		!strings.Contains(f[0], "recast secret set rack-bmc") {
		t.Errorf("findings %q", f)
	}
	if _, err := s.BMCSensors(t.Context(), "m1"); err == nil || !strings.Contains(err.Error(), "recast secret set rack-bmc") {
		t.Errorf("sensors: %v", err)
	}
	// The same words again: somebody may have mended the account.
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:secret"), "ann"); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Power(t.Context(), "m1", "ann", "status", false); err != nil {
			t.Errorf("power says %v", err)
		}
	}
	if n := fake.Count("dial"); n != 2 || len(s.onBMC("m1")) != 0 {
		t.Errorf("%d logins, findings %q; want 2 and none", n, s.onBMC("m1"))
	}
}

// A server that is restarted, or killed again and again, must not lock an account.
func TestARefusedPasswordIsNotTriedAgainByTheNextServer(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.SetFault(bmc.FaultAuth)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Failed, StepNone)
	before := s.onBMC("m1")
	fake.SetFault(bmc.FaultNone)
	for range 3 {
		s.restart()
		if _, err := s.Power(t.Context(), "m1", "ann", "status", false); !errors.Is(err, bmc.ErrAuth) || !strings.HasSuffix(err.Error(), "; recast secret set rack-bmc") {
			t.Errorf("power says %v", err)
		}
		if _, err := s.Console(t.Context(), "m1", false); !errors.Is(err, bmc.ErrAuth) {
			t.Errorf("console says %v", err)
		}
		if now := s.onBMC("m1"); len(before) != 1 || !slices.Equal(now, before) {
			t.Errorf("findings %q, before %q", now, before)
		}
	}
	if n := fake.Count("dial"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:secret"), "ann"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.lets("m1"); err != nil {
			t.Error(err)
		}
		s.restart()
	}
	if n := fake.Count("dial"); n != 3 || len(s.onBMC("m1")) != 0 {
		t.Errorf("%d logins, findings %q; want 3 and none", n, s.onBMC("m1"))
	}
}

func TestASessionIsUsedByAllStepsAndClosedAtTheEnd(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	if dials, closes := fake.Count("dial"), fake.Count("close"); dials != 1 || closes != 0 || len(fake.Calls()) < 4 {
		t.Errorf("%d logins, %d logouts in %d calls; want one session", dials, closes, len(fake.Calls()))
	}
	s.restart()
	if fake.Count("close") != 1 {
		t.Errorf("%d logouts after the server ended, want 1", fake.Count("close"))
	}
}

func TestSessionsOfAKilledServerAreSoughtAtTheStart(t *testing.T) {
	s := newSite(t, 2)
	if err := s.Freeze(t.Context(), "ann", "so that no machine starts"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true))
	left := bmcSessions{store.NewTable[[]bmc.Session](s.store, "/recast/bmcs/")}
	if err := left.SetSessions(t.Context(), "10.9.0.2:623", []bmc.Session{{URI: "/redfish/v1/SessionService/Sessions/7"}}); err != nil {
		t.Fatal(err)
	}
	s.restart()
	s.until("somebody logs in where a session was left", func() bool { return s.bmcs["10.9.0.2"].Count("dial") > 0 })
	if n := s.bmcs["10.9.0.1"].Count("dial"); n != 0 {
		t.Errorf("%d logins where none was left", n)
	}
	left = bmcSessions{store.NewTable[[]bmc.Session](s.store, "/recast/bmcs/")}
	if err := left.SetSessions(t.Context(), "10.9.0.2:623", nil); err != nil {
		t.Fatal(err)
	}
	if open, err := left.Sessions(t.Context()); err != nil || len(open) != 0 {
		t.Errorf("on record %v, %v", open, err)
	}
}
