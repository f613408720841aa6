package inventory

import (
	"bytes"
	"fmt"
	"strings"
)

// Resolve makes the generation of a Definition of this set: defaults filled in,
// its image and secrets replaced by digest and version. secretVersion says
// which version of a secret is in force, false where it was never set.
func (s *Set) Resolve(def *Definition, secretVersion func(name string) (int, bool)) (Generation, error) {
	img := s.Image(def.Image)
	if img == nil {
		return Generation{}, fmt.Errorf("resolve definition %q: there is no image %q", def.Name, def.Image)
	}
	r := Resolved{
		Image:      ResolvedImage{Type: img.Type, Arch: img.Arch, Digest: img.Digest},
		Every:      def.Every,
		Gate:       def.Gate,
		KernelArgs: def.KernelArgs,
		Select:     def.Select,
		Wipe:       def.Wipe,
		Config:     def.Config,
		Evidence:   def.Evidence,
	}
	switch def.Every {
	case BootGate:
		r.Image.Immutable, r.Image.Verity = img.Immutable, img.Verity
	case BootRestore:
		r.Image.State = img.State
	}
	if def.Gate != nil && def.Gate.Handover != HandoverReboot {
		r.Image.Boot = img.Boot
	}
	for _, name := range secretsIn(def.Config.UserData) {
		version, ok := secretVersion(name)
		if !ok {
			return Generation{}, fmt.Errorf("resolve definition %q: there is no secret %q: set it with: recast secret set %s", def.Name, name, name)
		}
		if r.Secrets == nil {
			r.Secrets = map[string]int{}
		}
		r.Secrets[name] = version
	}
	canonical, err := Canonical(r)
	if err != nil {
		return Generation{}, fmt.Errorf("resolve definition %q: %w", def.Name, err)
	}
	return Generation{Digest: DigestOf(canonical), Resolved: r, Canonical: canonical}, nil
}

// DecodeGeneration reads the canonical bytes a generation was kept as. It
// refuses bytes that are not canonical, and fields it does not know.
func DecodeGeneration(canonical []byte) (Generation, error) {
	var r Resolved
	if err := decodeStrict(canonical, &r); err != nil {
		return Generation{}, fmt.Errorf("decode generation: %w", err)
	}
	again, err := Canonical(r)
	if err != nil {
		return Generation{}, fmt.Errorf("decode generation: %w", err)
	}
	if !bytes.Equal(again, canonical) {
		return Generation{}, fmt.Errorf("decode generation: the bytes are not in canonical form")
	}
	return Generation{Digest: DigestOf(again), Resolved: r, Canonical: again}, nil
}

// renderedContent is what a rendered digest covers: all that one machine gets
// beside the image. Secrets stand in it by name and version.
type renderedContent struct {
	Machine    string         `json:"machine"`
	Arch       Arch           `json:"arch"`
	UserData   string         `json:"userData"`
	KernelArgs []string       `json:"kernelArgs"`
	NICs       []RenderedNIC  `json:"nics"`
	Secrets    map[string]int `json:"secrets"`
}

// Render fills in what one machine gets of the generation, secrets excepted.
// Its digest does not cover the generation's: each tells its own kind of change.
func (g Generation) Render(m *Machine) (Rendered, error) {
	r := Rendered{Machine: m.Name, Generation: g.Digest}
	fail := func(err error) (Rendered, error) {
		return Rendered{}, fmt.Errorf("fill in generation %s for machine %q: %w", g.Digest.Short(), m.Name, err)
	}
	if g.Resolved.Image.Arch != m.Arch {
		return fail(fmt.Errorf("the image is for %s, the machine is %s", g.Resolved.Image.Arch, m.Arch))
	}
	if data := g.Resolved.Config.UserData; data != "" {
		t, err := templates.get(data)
		if err != nil {
			return fail(err)
		}
		if r.UserData, err = t.render(m); err != nil {
			return fail(err)
		}
	}
	for _, arg := range g.Resolved.KernelArgs {
		filled, err := renderKernelArg(arg, m)
		if err != nil {
			return fail(err)
		}
		r.KernelArgs = append(r.KernelArgs, filled)
	}
	for _, n := range m.NICs {
		nic := RenderedNIC{MAC: n.MAC, Network: n.Network, VLAN: n.VLAN, Routes: n.Routes, Static: n.Static}
		if n.IP.IsValid() {
			nic.IP = n.IP.String()
		}
		if n.IP6.IsValid() {
			nic.IP6 = n.IP6.String()
		}
		r.NICs = append(r.NICs, nic)
	}
	canonical, err := Canonical(renderedContent{m.Name, m.Arch, r.UserData, r.KernelArgs, r.NICs, g.Resolved.Secrets})
	if err != nil {
		return fail(err)
	}
	r.Digest = DigestOf(canonical)
	return r, nil
}

// renderKernelArg: kernel arguments are public, so they hold no secret, and one
// argument is one word.
func renderKernelArg(arg string, m *Machine) (string, error) {
	segments, problems := parseTemplate(arg)
	if len(problems) > 0 {
		return "", fmt.Errorf("kernel argument %q: %s", arg, problems[0].text)
	}
	if hasSecret(segments) {
		return "", fmt.Errorf("kernel argument %q names a secret, and everybody can read kernel arguments", arg)
	}
	filled, err := renderSegments(segments, m)
	if err != nil {
		return "", err
	}
	if filled == "" || strings.ContainsFunc(filled, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\'' }) {
		return "", fmt.Errorf("kernel argument %q is not one word of printable ASCII without quotes", filled)
	}
	return filled, nil
}
