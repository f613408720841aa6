package provision

import (
	"regexp"
	"strings"
	"testing"

	"recast/bmc"
	"recast/testenv"
)

var anyBMC = regexp.MustCompile(`ipmi://10\.9\.0\.1\b`)

// redfishSite has one machine behind a virtual Redfish BMC.
func redfishSite(t *testing.T, o testenv.RedfishOptions) (*site, *testenv.RedfishBMC) {
	t.Helper()
	o.User, o.Password, o.Machine = "admin", "secret", &testenv.SimMachine{}
	b, err := testenv.NewRedfish(o)
	return behind(t, b, err), b
}

// ipmiSite has one machine behind a virtual IPMI BMC.
func ipmiSite(t *testing.T, o testenv.IPMIOptions) (*site, *testenv.IPMIBMC) {
	t.Helper()
	o.User, o.Password, o.Machine = "admin", "secret", &testenv.SimMachine{}
	b, err := testenv.NewIPMI(o)
	return behind(t, b, err), b
}

// behind is a site with one machine behind a virtual BMC.
func behind(t *testing.T, b interface {
	URL() string
	Close() error
}, err error) *site {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s := newSite(t, 1)
	s.idle()
	s.apply(anyBMC.ReplaceAllString(s.yaml(true), b.URL()))
	return s
}

// findings of a machine, as one text.
func (s *site) findings(name string) string {
	return strings.Join(s.machine(name).snapshot().Status.Findings, "\n")
}

func TestACertificateIsPinnedByEnrolmentAndAChangedOneStops(t *testing.T) {
	s, b := redfishSite(t, testenv.RedfishOptions{Vendor: "Contoso"})
	if err := s.lets("m1"); err == nil || b.Count("login") != 0 || !strings.Contains(s.findings("m1"), "recast bmc enrol m1") {
		t.Fatalf("before: %v, %d logins, findings %q", err, b.Count("login"), s.findings("m1"))
	}
	v, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{})
	if err != nil || v.Pin != b.Pin() || v.Driver != "redfish" || v.About.Vendor != "Contoso" || v.At.IsZero() {
		t.Fatalf("%+v, %v", v, err)
	}
	if n := b.Count("login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	if s.findings("m1") != "" {
		t.Errorf("findings %q", s.findings("m1"))
	}
	if err := s.lets("m1"); err != nil {
		t.Error(err)
	}

	if err := b.SwapCertificate(); err != nil {
		t.Fatal(err)
	}
	s.restart()
	logins := b.Count("login")
	repin := "recast bmc enrol m1 --pin " + string(b.Pin())
	if err := s.lets("m1"); err == nil || !strings.Contains(s.findings("m1"), repin) || b.Count("login") != logins {
		t.Errorf("after the swap: %v, findings %q, %d more logins", err, s.findings("m1"), b.Count("login")-logins)
	}
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err == nil || !strings.Contains(err.Error(), repin) {
		t.Errorf("an enrolment takes the other certificate by itself: %v", err)
	}
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{Pin: v.Pin}); err == nil || b.Count("login") != logins {
		t.Errorf("a third one is vouched for: %v", err)
	}
	if v, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{Pin: b.Pin()}); err != nil || v.Pin != b.Pin() {
		t.Fatalf("%+v, %v", v, err)
	}
	if err := s.lets("m1"); err != nil || s.findings("m1") != "" {
		t.Errorf("after the operator's word: %v, findings %q", err, s.findings("m1"))
	}
	if n := s.audited("bmc pin"); n != 2 {
		t.Errorf("%d pins in the audit log, want 2", n)
	}
}

func TestADeclaredCertificateIsChangedByItsDeclarationAlone(t *testing.T) {
	s, b := redfishSite(t, testenv.RedfishOptions{})
	declared := func() string {
		return strings.Replace(anyBMC.ReplaceAllString(s.yaml(true), b.URL()), "credentials: rack-bmc", "credentials: rack-bmc, pin: \""+string(b.Pin())+"\"", 1)
	}
	s.apply(declared())
	if err := s.lets("m1"); err != nil {
		t.Fatalf("a declared pin needs no enrolment: %v", err)
	}
	if err := b.SwapCertificate(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{Pin: b.Pin()}); err == nil || !strings.Contains(err.Error(), "set bmc.pin") || strings.Contains(err.Error(), "recast bmc enrol") {
		t.Errorf("%v", err)
	}
	s.apply(declared())
	if err := s.lets("m1"); err != nil {
		t.Error(err)
	}
}

func TestWhatABMCLeavesOpenIsAFindingUntilItIsClosed(t *testing.T) {
	s, b := ipmiSite(t, testenv.IPMIOptions{Faults: testenv.BMCFaults{CipherZero: true, Anonymous: true, OldProtocol: true}})
	v, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{})
	if err != nil || v.Driver != "ipmi" || v.Exposure == nil || *v.Exposure != (bmc.Exposure{IPMI20: true, IPMI15: true, Cipher0: true, Anonymous: true, NoName: true}) {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, about := range []string{"suite 0", "without name and password", "1.5"} {
		if !strings.Contains(s.findings("m1"), about) {
			t.Errorf("findings %q do not tell of %q", s.findings("m1"), about)
		}
	}
	if n := b.Count("login"); n != 1 {
		t.Errorf("%d logins, want 1", n)
	}
	b.SetFaults(func(f *testenv.BMCFaults) { *f = testenv.BMCFaults{} })
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil || s.findings("m1") != "" {
		t.Errorf("%v, findings %q", err, s.findings("m1"))
	}
}

func TestDefaultPasswordsAreTriedOnceAndOnlyThoseListed(t *testing.T) {
	s, b := redfishSite(t, testenv.RedfishOptions{Faults: testenv.BMCFaults{LockAfter: 3}})
	secret := func(value string) {
		t.Helper()
		if _, err := s.SetSecret(t.Context(), "vendor", []byte(value), "ann"); err != nil {
			t.Fatal(err)
		}
	}
	enrol := func(o EnrolOptions) error {
		t.Helper()
		_, err := s.EnrolBMC(t.Context(), "m1", "ann", o)
		return err
	}
	secret("root:calvin\nADMIN:ADMIN\nadmin:admin")
	if err := enrol(EnrolOptions{Defaults: "vendor"}); err == nil || b.Count("login") != 0 {
		t.Errorf("three at once: %v, %d logins", err, b.Count("login"))
	}
	secret("root:calvin\nADMIN:ADMIN\n")
	for range 3 {
		if err := enrol(EnrolOptions{Defaults: "vendor"}); err != nil || s.findings("m1") != "" {
			t.Errorf("%v, findings %q", err, s.findings("m1"))
		}
	}
	if n := b.Count("login"); n > 2+3 {
		t.Errorf("%d logins, want one with each default", n)
	}
	refused := 0
	for _, r := range b.Requests() {
		if r.Verb == "login" && (r.Detail == "root" || r.Detail == "ADMIN") {
			refused++
		}
	}
	if refused != 2 {
		t.Errorf("%d logins with defaults, want 2", refused)
	}
	secret("admin:secret")
	if err := enrol(EnrolOptions{Defaults: "vendor"}); err != nil || !strings.Contains(s.findings("m1"), "recast bmc rotate m1") {
		t.Errorf("its own is a default: %v, findings %q", err, s.findings("m1"))
	}
	if _, err := s.RotateBMC(t.Context(), "m1", "ann", "recast"); err != nil {
		t.Fatal(err)
	}
	secret("admin:secret\n")
	if err := enrol(EnrolOptions{Defaults: "vendor"}); err != nil || !strings.Contains(s.findings("m1"), `lets in "admin" with a listed default`) {
		t.Errorf("a default works: %v, findings %q", err, s.findings("m1"))
	}
}

func TestAPasswordThatMustBeChangedIsRotated(t *testing.T) {
	s, b := redfishSite(t, testenv.RedfishOptions{PasswordChangeRequired: true})
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil || !strings.Contains(s.findings("m1"), "recast bmc rotate m1") {
		t.Fatalf("%v, findings %q", err, s.findings("m1"))
	}
	if err := s.lets("m1"); err == nil || !strings.Contains(err.Error(), "recast bmc rotate m1") {
		t.Errorf("power says %v", err)
	}
	if _, err := s.RotateBMC(t.Context(), "m1", "ann", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.lets("m1"); err != nil || b.Password("admin") == "secret" {
		t.Error(err)
	}
}

func TestWhatABMCTellsReachesTheOperator(t *testing.T) {
	s, b := redfishSite(t, testenv.RedfishOptions{Serial: "SN1"})
	if _, err := s.EnrolBMC(t.Context(), "m1", "ann", EnrolOptions{}); err != nil {
		t.Fatal(err)
	}
	if v, err := s.BMCSensors(t.Context(), "m1"); err != nil || len(v.Sensors) == 0 {
		t.Errorf("sensors: %+v, %v", v, err)
	}
	if v, err := s.BMCInventory(t.Context(), "m1"); err != nil || v.Serial != "SN1" {
		t.Errorf("inventory: %+v, %v", v, err)
	}
	if _, err := s.BMCEvents(t.Context(), "m1", ""); err != nil {
		t.Errorf("events: %v", err)
	}
	if err := s.ResetBMC(t.Context(), "m1", "ann"); err != nil || b.Done("restart-bmc") != 1 || s.audited("bmc reset") != 1 {
		t.Errorf("reset: %v, %d", err, b.Done("restart-bmc"))
	}
	if v, ok := s.View("m1"); !ok || v.BMC == nil || v.BMC.Driver != "redfish" {
		t.Errorf("%+v", v.BMC)
	}
	k, err := s.book.of(s.Set().Machine("m1"))
	if err != nil || k.record().Facts == (bmc.Facts{}) {
		t.Errorf("nothing was learned: %+v, %v", k.record(), err)
	}
}
