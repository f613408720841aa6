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
