package provision

import (
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/ipxe"
)

// wayYAML is the site's with machines that boot through their BMCs; a definition may
// ask for more.
func (s *site) wayYAML(via inventory.BootVia, definition string) string {
	text := strings.ReplaceAll(s.yaml(true), "network: n}", "network: n, ip: 10.0.0.101}")
	text = strings.ReplaceAll(text, "ipmi://", "redfish://")
	text = strings.Replace(text, "  disk: {select", definition+"  disk: {select", 1)
	text = strings.Replace(text, "dhcp: off}", "dhcp: off, gateway: 10.0.0.254, routes: [{to: 10.7.0.0/16, via: 10.0.0.253}]}", 1)
	if via == "" {
		return text
	}
	return text + "  boot: {via: " + string(via) + "}\n"
}

// oneTime is the token in an address that a BMC was told.
func oneTime(t *testing.T, url, before string) string {
	t.Helper()
	rest, ok := strings.CutPrefix(url, before+ipxe.OncePath)
	token, _, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 || !strings.HasPrefix(token, "m1.") || len(token) < len("m1.")+32 {
		t.Fatalf("the BMC was told %q", url)
	}
	return token
}

func nonceOf(t *testing.T, s ipxe.Spec) string {
	t.Helper()
	for _, a := range s.Args {
		if n, ok := strings.CutPrefix(a, "recast.nonce="); ok {
			return n
		}
	}
	t.Fatalf("no claim in %+v", s)
	return ""
}

func TestMediumHoldsAddressAndNonceAndLeavesWithTheClaim(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.Told.Identity = bmc.Identity{UUID: testUUID(1), Serial: "SN1"}
	s.apply(s.wayYAML(inventory.BootMedia, "  identity: {minimum: L1}\n"), "m1")
	s.await("m1", Deploying, StepBooting)
	if boots := fake.Boots(); len(boots) != 1 || boots[0].Device != bmc.BootCD || fake.Count("insert") != 1 {
		t.Fatalf("the BMC was told %+v", fake.Calls())
	}
	token := oneTime(t, fake.Medium(), "http://10.9.9.9:8080")
	once, err := s.Once(t.Context(), token)
	if err != nil || once.MAC != testMAC(1) || once.Static.Address != netip.MustParsePrefix("10.0.0.101/24") || once.Server.String() != "10.0.0.1:8080" {
		t.Fatalf("%+v, %v", once, err)
	}
	for _, arg := range []string{"recast.ip=10.0.0.101/24", "recast.route=0.0.0.0/0,10.0.0.254", "recast.route=10.7.0.0/16,10.0.0.253", "recast.url=https://10.0.0.1:8443"} {
		if !slices.Contains(once.Spec.Args, arg) {
			t.Errorf("%q is not in %q", arg, once.Spec.Args)
		}
	}
	// A server that restarts makes the same medium.
	s.restart()
	if again, err := s.Once(t.Context(), token); err != nil || !reflect.DeepEqual(again, once) {
		t.Errorf("after a restart: %+v, %v", again, err)
	}
	// Its hardware address alone is worth nothing.
	spec, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)})
	if err != nil || spec.Kind != ipxe.SpecLocal || !strings.Contains(spec.Reason, "hardware address alone") {
		t.Errorf("by its hardware address it boots %+v, %v", spec, err)
	}
	if spec, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1), Token: token}); err == nil {
		t.Errorf("the network gives out %+v by the token of a medium", spec)
	}
	for _, bad := range []string{"", "m1", "m1.", token + "0", strings.Replace(token, "m1.", "m2.", 1)} {
		if _, err := s.Once(t.Context(), bad); err == nil {
			t.Errorf("token %q opens a medium", bad)
		}
	}
	claim := inventory.Claim{Nonce: nonceOf(t, once.Spec), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}
	if _, err := s.Claim(t.Context(), claim, testAddr(2)); err == nil || !strings.Contains(err.Error(), "10.0.0.101") {
		t.Errorf("a claim from another address: %v", err)
	}
	if _, err := s.Claim(t.Context(), claim, testAddr(1)); err != nil {
		t.Fatal(err)
	}
	s.until("the medium is out", func() bool { return fake.Medium() == "" })
	if v, _ := s.View("m1"); v.Status.Identity != inventory.L1 || len(v.Status.Findings) != 0 {
		t.Errorf("identity %q, findings %q", v.Status.Identity, v.Status.Findings)
	}
	// What reads it still reads the same; and no second boot comes of it.
	if again, err := s.Once(t.Context(), token); err != nil || nonceOf(t, again.Spec) != claim.Nonce {
		t.Errorf("after the claim: %v", err)
	}
	claim.BootID = "b2"
	if _, err := s.Claim(t.Context(), claim, testAddr(1)); err == nil {
		t.Error("its nonce was granted twice")
	}
	text := ""
	for _, l := range s.Timeline("m1") {
		text += l.Text + "\n"
	}
	if !strings.Contains(text, "insert the virtual medium and set boot from it: done") || strings.Contains(text, token) {
		t.Errorf("the timeline:\n%s", text)
	}
}

func TestHTTPBootAddressIsForOneClaimOfOneMachine(t *testing.T) {
	s := newSite(t, 2)
	fake := s.bmcs["10.9.0.1"]
	fake.Told.Identity = bmc.Identity{Serial: "SN1"}
	text := strings.Replace(s.wayYAML(inventory.BootHTTP, ""), ", ip: 10.0.0.101}", "}", 2) // the last machine is m2
	text = strings.Replace(text, "  uuid: \""+testUUID(1)+"\"\n", "  uuid: \""+testUUID(1)+"\"\n  boot: {via: http}\n", 1)
	s.apply(text, "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	boots := fake.Boots()
	if len(boots) != 1 || boots[0].Device != bmc.BootHTTP || !boots[0].UEFI {
		t.Fatalf("the BMC was told %+v", fake.Calls())
	}
	token := oneTime(t, boots[0].URI, "http://10.0.0.1:8080")
	if !strings.HasSuffix(boots[0].URI, "/"+ipxe.LoaderSNPOnly) {
		t.Errorf("it loads %s", boots[0].URI)
	}
	ask := func(i int, token string) (ipxe.Spec, error) {
		return s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(i), Remote: testAddr(i), Token: token})
	}
	if spec, err := ask(1, ""); err != nil || spec.Kind != ipxe.SpecLocal {
		t.Errorf("without its token it boots %+v, %v", spec, err)
	}
	s.await("m2", Deploying, StepBooting)
	if spec, err := ask(2, token); err == nil {
		t.Errorf("another machine boots %+v by its token", spec)
	}
	spec, err := ask(1, token)
	if err != nil || spec.Kind != ipxe.SpecRamdisk {
		t.Fatalf("%+v, %v", spec, err)
	}
	claim := inventory.Claim{Nonce: nonceOf(t, spec), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}
	if _, err := s.Claim(t.Context(), claim, testAddr(1)); err != nil {
		t.Fatal(err)
	}
	if spec, err := ask(1, token); err == nil {
		t.Errorf("the token that claimed boots %+v", spec)
	}
	if _, err := s.Once(t.Context(), token); err == nil {
		t.Error("the token that claimed leads somewhere")
	}
	if v, _ := s.View("m1"); v.Status.Identity != inventory.L1 {
		t.Errorf("identity %q", v.Status.Identity)
	}
}

func TestMediumIsTakenOutWhereverAnAttemptEnds(t *testing.T) {
	for name, end := range map[string]func(*site){
		"aborted": func(s *site) {
			if err := s.Abort(s.t.Context(), "m1", "ann"); err != nil {
				s.t.Error(err)
			}
		},
		"held": func(s *site) {
			if err := s.Hold(s.t.Context(), "m1", "bob", "hands in it", time.Hour); err != nil {
				s.t.Error(err)
			}
		},
		"failed": func(s *site) {
			m := s.machine("m1")
			m.mu.Lock()
			st := m.state
			st.Status.Attempt = 2
			st.Intent.Rearmed = true
			st.Status.Deadline = s.Now()
			m.put(st)
			m.mu.Unlock()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 1)
			fake := s.bmcs["10.9.0.1"]
			s.apply(s.wayYAML(inventory.BootMedia, ""), "m1")
			s.await("m1", Deploying, StepBooting)
			token := oneTime(t, fake.Medium(), "http://10.9.9.9:8080")
			end(s)
			s.until("the medium is out", func() bool { return fake.Medium() == "" })
			if _, err := s.Once(t.Context(), token); err == nil {
				t.Error("its token still leads somewhere")
			}
		})
	}
}

func TestABMCThatLacksTheWayIsNotTried(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.NoMedia = true
	text := s.wayYAML(inventory.BootMedia, "")
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "s.yaml", Data: []byte(text)}}, []string{"m1"})
	if err != nil || len(p.Entries) != 1 || !strings.Contains(p.Entries[0].Waits, "not shown yet") {
		t.Fatalf("%+v, %v", p.Entries, err)
	}
	s.apply(text, "m1")
	s.until("it waits", func() bool {
		v, _ := s.View("m1")
		return strings.Contains(v.Waiting, "does not offer a virtual CD drive")
	})
	if fake.Count("off")+fake.Count("on")+fake.Count("insert")+fake.Count("set-next-boot") != 0 {
		t.Errorf("it was tried: %+v", fake.Calls())
	}
	if p, err = s.Plan(t.Context(), []inventory.File{{Name: "s.yaml", Data: []byte(text)}}, []string{"m1"}); err != nil || !strings.Contains(p.Entries[0].Blocked, "does not offer a virtual CD drive") {
		t.Fatalf("%+v, %v", p.Entries, err)
	}
	// Declared otherwise, it goes on.
	s.apply(s.wayYAML("", ""), "m1")
	s.await("m1", Deploying, StepBooting)
}

func TestWayIsHeldAgainstWhatIsAskedForAndShown(t *testing.T) {
	url := "redfish://10.9.0.1"
	all := &BMCOffers{URL: url, Offers: bmc.Offers{HTTPBoot: true, Media: true}}
	for _, tc := range []struct {
		name         string
		via          inventory.BootVia
		minimum      inventory.Identity
		secrets      bool
		seen         *BMCOffers
		never, later string
	}{
		{name: "by the network", seen: nil},
		{name: "by the network, L1", minimum: inventory.L1, never: "identity L0"},
		{name: "media, not asked", via: inventory.BootMedia, later: "not shown yet whether it offers a virtual CD"},
		{name: "media, another BMC was asked", via: inventory.BootMedia, seen: &BMCOffers{URL: "redfish://10.9.0.2", Offers: all.Offers}, later: "not shown yet"},
		{name: "media", via: inventory.BootMedia, seen: all, minimum: inventory.L1, secrets: true},
		{name: "media, lacking", via: inventory.BootMedia, seen: &BMCOffers{URL: url, Offers: bmc.Offers{HTTPBoot: true}}, never: "does not offer a virtual CD"},
		{name: "http", via: inventory.BootHTTP, seen: all, minimum: inventory.L1},
		{name: "http, secrets at L0", via: inventory.BootHTTP, seen: all, secrets: true},
		{name: "http, secrets at L1", via: inventory.BootHTTP, seen: all, minimum: inventory.L1, secrets: true, never: "a listener reads it"},
		{name: "http, lacking", via: inventory.BootHTTP, seen: &BMCOffers{URL: url, Offers: bmc.Offers{Media: true}}, never: "HttpBootUri"},
	} {
		m := &inventory.Machine{Name: "m1", BMC: &inventory.BMCRef{URL: url}, Boot: inventory.Boot{Via: tc.via}}
		w := Wanted{Definition: &inventory.Definition{Name: "d", Identity: tc.minimum}}
		if tc.secrets {
			w.Generation.Resolved.Secrets = map[string]int{"x": 1}
		}
		never, later := bootWay(m, w, tc.seen)
		for what, pair := range map[string][2]string{"never": {never.String(), tc.never}, "later": {later.String(), tc.later}} {
			if (pair[0] == "") != (pair[1] == "") || !strings.Contains(pair[0], pair[1]) {
				t.Errorf("%s: %s %q, want %q", tc.name, what, pair[0], pair[1])
			}
		}
	}
}

func TestIdentityIsWhatTheBMCSaysToo(t *testing.T) {
	const uuid = "00112233-4455-6677-8899-aabbccddeeff"
	carried := &Intent{Via: inventory.BootMedia}
	for _, tc := range []struct {
		name         string
		in           *Intent
		board        *Board
		uuid, serial string
		want         inventory.Identity
		doubt        string
	}{
		{"by the network", &Intent{}, &Board{UUID: uuid}, uuid, "s", inventory.L0, ""},
		{"the same UUID", carried, &Board{UUID: strings.ToUpper(uuid), Serial: "chassis"}, uuid, "s", inventory.L1, ""},
		{"in the other byte order", carried, &Board{UUID: "33221100-5544-7766-8899-aabbccddeeff"}, uuid, "s", inventory.L1, ""},
		{"the same serial", carried, &Board{UUID: "service", Serial: "s"}, uuid, "s", inventory.L1, ""},
		{"neither", carried, &Board{UUID: strings.Replace(uuid, "0", "1", 1), Serial: "t"}, uuid, "s", inventory.L0, "another machine's BMC"},
		{"empty serials", carried, &Board{UUID: "x"}, uuid, "", inventory.L0, "another machine's BMC"},
		{"a UUID that many share", carried, &Board{UUID: "00000000-0000-0000-0000-000000000000"}, "00000000-0000-0000-0000-000000000000", "", inventory.L0, "another machine's BMC"},
		{"nothing told", carried, &Board{BMC: "x"}, uuid, "s", inventory.L0, "neither UUID nor serial"},
		{"not asked", carried, nil, uuid, "s", inventory.L0, "neither UUID nor serial"},
	} {
		in := *tc.in
		in.Board = tc.board
		got, doubt := identityOf(&in, tc.uuid, tc.serial)
		if got != tc.want || (doubt == "") != (tc.doubt == "") || !strings.Contains(doubt, tc.doubt) {
			t.Errorf("%s: %s, %q", tc.name, got, doubt)
		}
	}
}

func TestAMachineBehindAnothersBMCIsHeldWhereItsIdentityMatters(t *testing.T) {
	s := newSite(t, 1)
	fake := s.bmcs["10.9.0.1"]
	fake.Told.Identity = bmc.Identity{UUID: testUUID(7), Serial: "SN7"}
	s.apply(strings.Replace(s.wayYAML(inventory.BootMedia, "  identity: {minimum: L1}\n"), "  uuid:", "  #", 1), "m1") // nothing is known of it
	s.await("m1", Deploying, StepBooting)
	once, err := s.Once(t.Context(), oneTime(t, fake.Medium(), "http://10.9.9.9:8080"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Claim(t.Context(), inventory.Claim{Nonce: nonceOf(t, once.Spec), MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}, testAddr(1))
	v, _ := s.View("m1")
	if err == nil || v.Status.Hold == nil || !strings.Contains(v.Status.Hold.Reason, "SN7") {
		t.Errorf("%v, hold %+v", err, v.Status.Hold)
	}
	s.until("the medium is out", func() bool { return fake.Medium() == "" })
}

func TestATokenIsLeftOutOfWhatALoaderSays(t *testing.T) {
	for text, want := range map[string]string{
		"a line": "a line",
		"http://10.0.0.1:8080/boot/once/m1.0a1b/script... ok":   "http://10.0.0.1:8080/boot/once/…/script... ok",
		"/boot/once/m1.0a1b/snponly.efi and /boot/once/m1.0a1b": "/boot/once/…/snponly.efi and /boot/once/…",
		"/boot/once/m1.0a1b is gone, and so is /boot/once/":     "/boot/once/… is gone, and so is /boot/once/…",
	} {
		if got := hideOnce(text); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
