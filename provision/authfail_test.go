package provision

import (
	"strings"
	"testing"

	"recast/bmc"
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

func TestASecretThatIsNoPasswordIsToldInOneLine(t *testing.T) {
	s := newSite(t, 1)
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("without-a-user"), "ann"); err != nil {
		t.Fatal(err)
	}
	s.apply(s.yaml(true), "m1")
	s.await("m1", Failed, StepNone)
	x, err := s.Explain(t.Context(), "m1")
	if err != nil || strings.Contains(x.Missing, "\n") || !strings.Contains(x.Missing, `want "user:password"`) {
		t.Errorf("missing %q, %v", x.Missing, err)
	}
}
