package provision

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"recast/bmc"
	"recast/testenv"
)

// rotating is a site whose only machine has a BMC that checks passwords.
func rotating(t *testing.T) (*site, *bmc.Fake) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.Passwords = map[string]string{"admin": "secret"}
	s.idle()
	s.apply(s.yaml(true))
	return s, fake
}

// idle keeps every machine from starting.
func (s *site) idle() {
	s.t.Helper()
	if err := s.Freeze(s.t.Context(), "ann", "so that no machine starts"); err != nil {
		s.t.Fatal(err)
	}
}

// lets tells whether recast gets in.
func (s *site) lets(name string) error {
	s.t.Helper()
	_, err := s.Power(s.t.Context(), name, "ann", "status", false)
	return err
}

func (s *site) audited(what string) (n int) {
	s.t.Helper()
	log, err := s.Audit(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range log {
		if a.What == what {
			n++
		}
	}
	return n
}

func TestARotatedPasswordIsInUseAndIsNowhereToBeRead(t *testing.T) {
	s, fake := rotating(t)
	v, err := s.RotateBMC(t.Context(), "m1", "ann", "")
	if err != nil {
		t.Fatal(err)
	}
	password := fake.Password("admin")
	if v.User != "admin" || v.Rotated.IsZero() || !v.Rotating.IsZero() || password == "secret" || len(password) != 16 {
		t.Errorf("%+v, password of %d", v, len(password))
	}
	if n := fake.Count("dial"); n != 2 {
		t.Errorf("%d logins, want one with each", n)
	}
	for range 2 {
		if err := s.lets("m1"); err != nil {
			t.Error(err)
		}
		s.restart()
	}
	if n := s.audited("bmc rotate"); n != 1 {
		t.Errorf("%d entries in the audit log, want 1", n)
	}
	s.close()
	raw, err := os.ReadFile(filepath.Join(s.dir, "recast.db"))
	if err != nil || bytes.Contains(raw, []byte(password)) {
		t.Errorf("the store shows the password (%v)", err)
	}
	s.open()
}

func TestAnotherUserIsMadeAndTheKnownOneStays(t *testing.T) {
	s, fake := rotating(t)
	if _, err := s.RotateBMC(t.Context(), "m1", "ann", "a:b"); err == nil {
		t.Error("a name with a colon is taken")
	}
	v, err := s.RotateBMC(t.Context(), "m1", "ann", "recast")
	if err != nil || v.User != "recast" || fake.Password("admin") != "secret" || fake.Password("recast") == "" {
		t.Fatalf("%+v, %v", v, err)
	}
	delete(fake.Passwords, "admin")
	s.restart()
	if err := s.lets("m1"); err != nil {
		t.Error(err)
	}
}

// TestAStoreThatFailsAnywhereKeepsThePasswordThatWorks loses the answer of each commit
// of a rotation in its turn.
func TestAStoreThatFailsAnywhereKeepsThePasswordThatWorks(t *testing.T) {
	for n := 1; ; n++ {
		s, fake := rotating(t)
		s.store.lose.Store(int64(n))
		_, err := s.RotateBMC(t.Context(), "m1", "ann", "")
		s.store.lose.Store(0)
		for range 2 {
			if err := s.lets("m1"); err != nil {
				t.Fatalf("the answer to commit %d is lost: %v", n, err)
			}
			s.restart()
		}
		if rotated := fake.Password("admin") != "secret"; rotated != (s.audited("bmc rotate") > 0) {
			t.Errorf("the answer to commit %d is lost: rotated %t, against its record", n, rotated)
		}
		refused := 0
		for _, call := range fake.Calls() {
			if call.Verb == "dial" && errors.Is(call.Err, bmc.ErrAuth) {
				refused++
			}
		}
		if refused > 1 {
			t.Errorf("the answer to commit %d is lost: %d logins refused", n, refused)
		}
		if err == nil {
			if n < 3 {
				t.Errorf("a rotation has %d commits", n-1)
			}
			return
		}
	}
}

func TestALostAnswerToANewPasswordIsLookedInto(t *testing.T) {
	for _, c := range []struct {
		name   string
		faults testenv.BMCFaults
		fails  bool
	}{
		{"executed, and not answered", testenv.BMCFaults{LoseEveryReply: true}, false},
		{"executed, and refused", testenv.BMCFaults{RejectAfter: true}, false},
		{"busy, so that it is not begun", testenv.BMCFaults{Busy: true}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, b := redfishSite(t, testenv.RedfishOptions{})
			if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil {
				t.Fatal(err)
			}
			b.SetFaults(func(f *testenv.BMCFaults) { *f = c.faults })
			_, err := s.RotateBMC(t.Context(), "m1", "ann", "")
			b.SetFaults(func(f *testenv.BMCFaults) { *f = testenv.BMCFaults{} })
			if (err != nil) != c.fails {
				t.Errorf("%v", err)
			}
			if err := s.lets("m1"); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			if v, _ := s.View("m1"); (b.Password("admin") == "secret") != c.fails || v.BMC.Rotated.IsZero() != c.fails || !v.BMC.Rotating.IsZero() {
				t.Errorf("%+v", v.BMC)
			}
		})
	}
}

func TestAPasswordThatNeitherWorksIsTriedOnceEach(t *testing.T) {
	s, fake := rotating(t)
	if _, err := s.RotateBMC(t.Context(), "m1", "ann", ""); err != nil {
		t.Fatal(err)
	}
	fake.Passwords = map[string]string{"admin": "factory"}
	s.bmcs["10.9.0.1"].SetFault(bmc.FaultNone)
	s.restart()
	before := fake.Count("dial")
	for range 3 {
		if err := s.lets("m1"); err == nil || !strings.Contains(err.Error(), "recast bmc enrol m1") {
			t.Errorf("%v", err)
		}
	}
	if n := fake.Count("dial") - before; n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	// The operator's word: the secret, and an enrolment.
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:factory"), "ann"); err != nil {
		t.Fatal(err)
	}
	if v, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil || v.User != "" {
		t.Fatalf("%+v, %v", v, err)
	}
	if err := s.lets("m1"); err != nil || len(s.onBMC("m1")) != 0 {
		t.Errorf("%v, findings %q", err, s.onBMC("m1"))
	}
}
