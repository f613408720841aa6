package inventory

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func version(n int) func(string) (int, bool) {
	return func(string) (int, bool) { return n, true }
}

func resolved(t testing.TB, s *Set, def string) Generation {
	t.Helper()
	g, err := s.Resolve(s.Definition(def), version(1))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// A digest that moves without a change of the definition would re-image every
// machine at the next upgrade: the golden file may change only with a reason.
func TestDigestsStayWhatTheyWere(t *testing.T) {
	s := parseOne(t, rack(t))
	g := resolved(t, s, "compute")
	var b strings.Builder
	fmt.Fprintf(&b, "generation %s\n%s\n", g.Digest, g.Canonical)
	for _, m := range s.Machines {
		r, err := g.Render(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "\nrendered %s %s\n%s", m.Name, r.Digest, r.UserData)
	}
	const file = "testdata/rack.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Error(d)
	}
}

func TestGenerationChangesWithWhatRunsAndNothingElse(t *testing.T) {
	base := rack(t)
	before := resolved(t, parseOne(t, base), "compute").Digest
	for _, tt := range []struct {
		name, old, new string
		changes        bool
	}{
		{"user data", "path: /etc/place", "path: /etc/where", true},
		{"image", "e3b0c44298fc", "e3b0c44298fd", true},
		{"disk size", "minSize: 8GiB", "minSize: 9GiB", true},
		{"hint", "rotational: false", "rotational: true", true},
		{"wipe", "wipe: table", "wipe: discard", true},
		{"evidence", "minimum: reported", "minimum: read-back", true},
		{"the image's name", "debian-12", "bookworm", false},
		{"source", "https://images.example/debian-12.raw.zst", "/srv/debian-12.raw", false},
		{"deadlines", "{booting: 15m}", "{booting: 9m}", false},
		{"health", "deadline: 20m", "deadline: 30m", false},
		{"the age of evidence", "{minimum: reported}", "{minimum: reported, maxAge: 24h}", false},
		{"attempts", "attempts: 3", "attempts: 1", false},
		{"rollout", "canary: 1", "canary: 2", false},
		{"a machine", "unit: 5", "unit: 7", false},
		{"spelling of a size", "minSize: 8GiB", "minSize: 8192 MiB", false},
		{"spelling of a boolean hint", "rotational: false", `rotational: "no"`, false},
		{"a default left out", "  evidence: {minimum: reported}\n", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := strings.ReplaceAll(base, tt.old, tt.new)
			if doc == base {
				t.Fatalf("rack.yaml does not hold %q", tt.old)
			}
			after := resolved(t, parseOne(t, doc), "compute").Digest
			if (after != before) != tt.changes {
				t.Errorf("generation went from %s to %s", before.Short(), after.Short())
			}
		})
	}
	s := parseOne(t, base)
	newer, err := s.Resolve(s.Definition("compute"), version(2))
	if err != nil || newer.Digest == before {
		t.Errorf("a new version of a secret gives %s (%v)", newer.Digest.Short(), err)
	}
	if _, err := s.Resolve(s.Definition("compute"), func(string) (int, bool) { return 0, false }); err == nil || !strings.Contains(err.Error(), "recast secret set join-token") {
		t.Errorf("an unknown secret: %v", err)
	}
}

func TestRenderedDigestChangesWithWhatTheMachineGets(t *testing.T) {
	s := parseOne(t, rack(t))
	g := resolved(t, s, "compute")
	render := func(g Generation, m Machine) Digest {
		r, err := g.Render(&m)
		if err != nil {
			t.Fatal(err)
		}
		return r.Digest
	}
	m := *s.Machine("r1u05")
	before := render(g, m)
	if after := render(g, m); after != before {
		t.Error("rendering twice gives two digests")
	}
	other := m
	other.Location.Unit = 9
	if render(g, other) == before {
		t.Error("another unit, which the user data holds, gives the same digest")
	}
	other = m
	other.NICs = slices.Clone(m.NICs)
	other.NICs[0].IP = other.NICs[0].IP.Next()
	if render(g, other) == before {
		t.Error("another address gives the same digest")
	}
	other = m
	other.Location.Site = "lon"
	if render(g, other) != before {
		t.Error("another site, which nothing uses, gives another digest")
	}
	newer, err := s.Resolve(s.Definition("compute"), version(2))
	if err != nil {
		t.Fatal(err)
	}
	if render(newer, m) == before {
		t.Error("another version of a secret gives the same digest")
	}
	arm := m
	arm.Arch = ARM64
	if _, err := g.Render(&arm); err == nil {
		t.Error("an amd64 image was given to an arm64 machine")
	}
}

func TestSetSurvivesEncoding(t *testing.T) {
	s := parseOne(t, rack(t))
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeSet(b)
	if err != nil {
		t.Fatal(err)
	}
	b2, err := again.Encode()
	if err != nil || !bytes.Equal(b, b2) {
		t.Errorf("encoded again it is %s (%v)", b2, err)
	}
	if again.GroupOf("r1u06") == nil || again.MachineByMAC("52:54:00:00:00:06") == nil {
		t.Error("the decoded set has no look-ups")
	}
	if d := cmp.Diff(s.SecretNames(), again.SecretNames()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"join-token", "rack1-bmc"}, s.SecretNames()); d != "" {
		t.Error(d)
	}
	// The same documents in another order and in several files are the same set.
	docs := strings.Split(rack(t), "---\n")
	slices.Reverse(docs)
	var files []File
	for i, d := range docs {
		files = append(files, File{Name: fmt.Sprintf("%d.yaml", i), Data: []byte(d)})
	}
	other, err := Parse(files)
	if err != nil {
		t.Fatal(err)
	}
	if other.Digest() != s.Digest() {
		t.Error("the order of the documents changes the digest")
	}
	if EmptySet().Digest() == s.Digest() {
		t.Error("the empty set has the digest of a rack")
	}
	empty, err := EmptySet().Encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeSet(empty); err != nil || back.Digest() != EmptySet().Digest() {
		t.Errorf("the empty set does not survive: %v", err)
	}
	for name, bad := range map[string]string{
		"unknown field":     strings.Replace(string(b), `"attempts"`, `"newField":1,"attempts"`, 1),
		"lost image":        strings.Replace(string(b), `"name":"debian-12"`, `"name":"other"`, 1),
		"lost definition":   strings.Replace(string(b), `"definition":"compute"`, `"definition":"other"`, 1),
		"null":              `{"machines":[null],"networks":[],"images":[],"groups":[],"definitions":[]}`,
		"truncated":         string(b[:len(b)-1]),
		"two":               string(b) + string(b),
		"malformed digest":  strings.Replace(string(b), "sha256:e3", "sha256:", 1),
		"malformed address": strings.Replace(string(b), "10.20.0.15", "10.20.0", 1),
	} {
		if bad == string(b) {
			t.Fatalf("%s: nothing was changed", name)
		}
		if _, err := DecodeSet([]byte(bad)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func TestGenerationSurvivesEncoding(t *testing.T) {
	g := resolved(t, parseOne(t, rack(t)), "compute")
	again, err := DecodeGeneration(g.Canonical)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(g, again); d != "" {
		t.Error(d)
	}
	for name, bad := range map[string]string{
		"another order": `{"every":"disk",` + strings.Replace(string(g.Canonical[1:]), `"every":"disk",`, "", 1),
		"white space":   " " + string(g.Canonical),
		"unknown field": strings.Replace(string(g.Canonical), `"every"`, `"aaa":1,"every"`, 1),
		"empty":         "",
	} {
		if _, err := DecodeGeneration([]byte(bad)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

// A plan for a Group that nobody is in shows nothing else.
func TestAGroupThatSelectsNothingIsSaidSo(t *testing.T) {
	doc := strings.Replace(rack(t), "role: compute}\n  definition", "role: storage}\n  definition", 1)
	if doc == rack(t) {
		t.Fatal("the files hold no such selector")
	}
	want := "group rack1-compute changed: select (selects no machine: compare its select with the machines' labels and location)"
	if got := Changes(parseOne(t, rack(t)), parseOne(t, doc)); !slices.Contains(got, want) {
		t.Errorf("%q", got)
	}
}

func TestChangesInWords(t *testing.T) {
	old := parseOne(t, rack(t))
	doc := strings.Replace(rack(t), "/etc/place", "/etc/where", 1)
	doc = strings.Replace(doc, "canary: 1", "canary: 0", 1)
	doc = strings.ReplaceAll(doc, "r1u06", "r1u07")
	got := Changes(old, parseOne(t, doc))
	want := []string{
		"definition compute changed: config",
		"group rack1-compute changed: rollout",
		"machine r1u06 removed",
		"machine r1u07 added",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := Changes(old, parseOne(t, rack(t))); len(got) != 0 {
		t.Errorf("no change is %q", got)
	}
	// A proxy's addresses are promised by nobody here, and the plan says so.
	beside := parseOne(t, strings.NewReplacer("dhcp: authoritative", "dhcp: proxy", "  pool: 10.20.0.100-10.20.0.199\n", "").Replace(rack(t)))
	const note = " (dhcp: proxy: its addresses are not ours, another server gives them)"
	if d := cmp.Diff([]string{"network rack1 changed: dhcp, pool" + note}, Changes(old, beside)); d != "" {
		t.Error(d)
	}
	if got := Changes(EmptySet(), beside); !slices.Contains(got, "network rack1 added"+note) {
		t.Errorf("a new proxy: %q", got)
	}
	if d := cmp.Diff([]string{"network rack1 changed: dhcp, pool"}, Changes(beside, old)); d != "" {
		t.Error(d)
	}
	if got := Changes(EmptySet(), old); len(got) != 6 || got[0] != "definition compute added" {
		t.Errorf("from nothing: %q", got)
	}
}
