// Package target knows what each operating system wants to be told: it checks
// what an operator wrote for it and renders the small volume that carries it
// onto the machine's disk.
package target

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	"recast/fat"
	"recast/inventory"
)

// Labels of the volume and of its partition.
const (
	// LabelCloudInit is what cloud-init's NoCloud looks for.
	LabelCloudInit = "CIDATA"
	// LabelNone is for systems that read no configuration: the volume then only
	// says what the disk is, and cloud-init must not take it for its own.
	LabelNone = "RECAST"
)

// Names of the files that are recast's own on every volume.
const (
	// MarkerFile holds an inventory.Marker: what was written to this disk.
	MarkerFile = "recast.json"
	// ReportFile holds what an installed system without cloud-init needs to
	// report itself; see "recast-agent report".
	ReportFile = "recast-report.json"
)

// MaxUserData bounds user data, in bytes: more belongs into the image.
const MaxUserData = 1 << 20

// Input is all that a volume depends on.
type Input struct {
	Rendered inventory.Rendered
	Format   inventory.ConfigFormat // of the generation's config; "" is none
	Image    inventory.Digest
	Machine  *inventory.Machine
	Attempt  int
	Write    string // names the write that the volume is for
	// Secrets returns a secret's value, false where there is none of that name.
	Secrets func(name string) (string, bool)
	// Report tells the installed system where to report itself; nil for nowhere.
	Report *Reporter
	// Again: the volume carries the program that starts the machine over.
	Again bool
}

// Reporter is where an installed system says which generation it runs.
type Reporter struct {
	URL   string // of the agent API, https://HOST:PORT
	CAPEM string // the only certificates to trust
	Token string // can do nothing but report this machine, generation and write
}

// Volume is a ready-made file system.
type Volume struct {
	Label  string
	Bytes  []byte // a multiple of 1 MiB
	Digest inventory.Digest
}

// reportConfig is the content of ReportFile.
type reportConfig struct {
	URL        string           `json:"url"`
	CA         string           `json:"ca"` // PEM
	Token      string           `json:"token"`
	Machine    string           `json:"machine"`
	Generation inventory.Digest `json:"generation"`
	Rendered   inventory.Digest `json:"rendered"`
	Write      string           `json:"write"`
}

// Validate says what is wrong with a Definition's config before any machine
// needs it. Substitutions may still stand in it.
func Validate(cfg inventory.Config) error {
	switch cfg.Format {
	case inventory.ConfigNone, "":
		if cfg.UserData != "" {
			return fmt.Errorf("userData is set, but format %q has nobody to read it; want format: cloud-init", cfg.Format)
		}
		return nil
	case inventory.ConfigCloudInit:
		return validateUserData(cfg.UserData)
	}
	return fmt.Errorf("config format %q is not known; want cloud-init or none", cfg.Format)
}

// Render makes the volume. The same input gives the same bytes, always: the
// write intent names the volume by its digest before the agent fetches it.
func Render(in Input) (Volume, error) {
	v, err := render(in)
	if err != nil {
		return Volume{}, fmt.Errorf("render config of machine %q: %w", in.Rendered.Machine, err)
	}
	return v, nil
}

func render(in Input) (Volume, error) {
	marker, err := encode(inventory.Marker{Machine: in.Rendered.Machine, Generation: in.Rendered.Generation,
		Rendered: in.Rendered.Digest, Image: in.Image, Attempt: in.Attempt, Write: in.Write})
	if err != nil {
		return Volume{}, err
	}
	files := []fat.File{{Name: MarkerFile, Data: marker}}
	var report *reportConfig
	if in.Report != nil {
		report = &reportConfig{URL: strings.TrimSuffix(in.Report.URL, "/"), CA: in.Report.CAPEM, Token: in.Report.Token,
			Machine: in.Rendered.Machine, Generation: in.Rendered.Generation, Rendered: in.Rendered.Digest, Write: in.Write}
		if err := report.check(); err != nil {
			return Volume{}, err
		}
		b, err := encode(report)
		if err != nil {
			return Volume{}, err
		}
		files = append(files, fat.File{Name: ReportFile, Data: b})
	}
	label := LabelNone
	switch in.Format {
	case inventory.ConfigNone, "":
	case inventory.ConfigCloudInit:
		label = LabelCloudInit
		more, err := noCloud(in, report)
		if err != nil {
			return Volume{}, err
		}
		files = append(files, more...)
	default:
		return Volume{}, fmt.Errorf("config format %q is not known", in.Format)
	}
	if in.Again {
		files = append(files, fat.File{Name: AgainFile, Data: Again()})
	}
	v, err := fat.New(fat.Shape{Label: label, Sector: 4096, Cluster: 4096, Multiple: 1 << 20}, files)
	if err != nil {
		return Volume{}, fmt.Errorf("make config volume: %w", err)
	}
	b := v.Bytes()
	return Volume{Label: label, Bytes: b, Digest: inventory.DigestOf(b)}, nil
}

// check keeps what is put into a shell and a Python script free of anything
// that could end a string there.
func (r *reportConfig) check() error {
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || !plain(r.URL) {
		return fmt.Errorf("reporter: %q is not https://HOST:PORT", r.URL)
	}
	if r.Token == "" || !plain(r.Token) {
		return fmt.Errorf("reporter: the token is empty or has characters that do not belong into one")
	}
	if !plain(r.Machine) || !plain(r.Write) {
		return fmt.Errorf("reporter: machine name %q or write %q has characters that do not belong into one", r.Machine, r.Write)
	}
	block, _ := pem.Decode([]byte(r.CA))
	if block == nil || block.Type != "CERTIFICATE" || strings.ContainsAny(r.CA, "'\\$`\"") {
		return fmt.Errorf("reporter: the CA is not a PEM certificate")
	}
	return nil
}

// plain is for words that stand in quotes of several languages.
func plain(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.~=:/[]+", r))
	})
}

func encode(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}
