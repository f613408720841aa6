package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"recast/inventory"
)

// config is recast.yaml: how the server runs, as opposed to what it serves. Every
// field has a default that works.
type config struct {
	// Data holds the store, images, keys and the ramdisk.
	Data string `yaml:"data"`
	// Listen addresses, [host]:port.
	Boot  string `yaml:"boot"`  // plain HTTP for machines
	Agent string `yaml:"agent"` // TLS for machines and operators
	// Syslog of machines by UDP, [host]:port; "" receives none. iPXE knows port 514 alone.
	Syslog string `yaml:"syslog"`
	// Store names etcd endpoints; none means the file store in Data.
	Store struct {
		Endpoints []string `yaml:"endpoints"`
	} `yaml:"store"`
	Images struct {
		MaxSize byteSize `yaml:"maxSize"` // of an unpacked image
	} `yaml:"images"`
	// Ramdisk folder, as "recast ramdisk build" makes it; default Data/ramdisk.
	Ramdisk string `yaml:"ramdisk"`
	// Turns is how many machines fetch the ramdisk at once; the rest waits. 0: no bound.
	Turns int `yaml:"turns"`
	// SoftOff is how long an operating system may take to shut down.
	SoftOff time.Duration `yaml:"softOff"`
	// WatchBMCs is how often each BMC is asked for its machine's power; 0 never.
	WatchBMCs time.Duration `yaml:"watchBMCs"`
	Log       struct {
		Level string `yaml:"level"` // debug, info, warn, error
	} `yaml:"log"`
}

const (
	defaultData   = "/var/lib/recast"
	defaultConfig = "/etc/recast/recast.yaml"
)

func defaults() config {
	var c config
	c.Data, c.Boot, c.Agent, c.Syslog = defaultData, ":8080", ":8443", ":514"
	c.Images.MaxSize = 64 << 30
	c.Turns = 64
	c.SoftOff = 30 * time.Second
	c.WatchBMCs = 5 * time.Minute
	c.Log.Level = "info"
	return c
}

// byteSize is written with its unit: 64GiB.
type byteSize int64

func (s *byteSize) UnmarshalText(text []byte) error {
	n, err := inventory.ParseSize(string(text))
	*s = byteSize(n)
	return err
}

func (s byteSize) MarshalText() ([]byte, error) {
	for _, u := range []struct {
		name string
		size byteSize
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s >= u.size && s%u.size == 0 {
			return fmt.Appendf(nil, "%d%s", s/u.size, u.name), nil
		}
	}
	return fmt.Appendf(nil, "%dB", s), nil
}

// readConfig reads path over the defaults; a missing file is an error only
// where the operator named it.
func readConfig(path string, named bool) (config, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return defaults(), nil
	}
	if err != nil {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	c, err := parseConfig(path, raw)
	if err != nil {
		return c, fmt.Errorf("the configuration is refused; recast serve --print-config shows every field:\n%w", err)
	}
	return c, nil
}

// hostFlags say where a server of this host has its configuration and its data.
type hostFlags struct{ path, data string }

func (f *hostFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.path, "config", defaultConfig, "configuration file of the server")
	flags.StringVar(&f.data, "data", "", "data folder (overrides the configuration)")
}

// read is the configuration with the data folder that is meant: the flag's, else that of
// RECAST_DATA unless a configuration is named, as for the verbs that ask the server.
func (f *hostFlags) read(cmd *cobra.Command) (config, error) {
	named := cmd.Flags().Changed("config")
	c, err := readConfig(f.path, named)
	if err != nil {
		return c, codeError{err, exitUsage}
	}
	if !named {
		c.Data = cmp.Or(os.Getenv("RECAST_DATA"), c.Data)
	}
	c.Data = cmp.Or(f.data, c.Data)
	return c, nil
}

// parseConfig reports every problem at once, as declared files do.
func parseConfig(path string, raw []byte) (config, error) {
	c := defaults()
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		problem := inventory.Problem{File: path, Text: strings.TrimPrefix(err.Error(), "yaml: "), Next: "mend the YAML there"}
		if line, text, ok := strings.Cut(strings.TrimPrefix(problem.Text, "line "), ": "); ok {
			if n, err := strconv.Atoi(line); err == nil {
				problem.Line, problem.Text = n, text
			}
		}
		return c, inventory.Problems{problem}
	}
	p := configParser{file: path, lines: map[string]int{}}
	if len(doc.Content) > 0 {
		p.mapping("", doc.Content[0], reflect.ValueOf(&c).Elem())
	}
	p.check(c)
	if len(p.problems) > 0 {
		return c, p.problems
	}
	return c, nil
}

type configParser struct {
	file     string
	lines    map[string]int // of the fields that were set
	problems inventory.Problems
}

func (p *configParser) problem(line int, field, text, next string) {
	p.problems = append(p.problems, inventory.Problem{File: p.file, Line: line, Field: field, Text: text, Next: next})
}

// mapping decodes the fields of a struct, one by one, so that each error knows
// its line.
func (p *configParser) mapping(prefix string, n *yaml.Node, into reflect.Value) {
	if n.Kind != yaml.MappingNode {
		if n.Tag != "!!null" {
			p.problem(n.Line, prefix, "want fields with values here", "")
		}
		return
	}
	fields := map[string]reflect.Value{}
	var known []string
	for i := range into.NumField() {
		name := into.Type().Field(i).Tag.Get("yaml")
		fields[name] = into.Field(i)
		known = append(known, name)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		if prefix != "" {
			name = prefix + "." + name
		}
		f, ok := fields[key.Value]
		switch _, twice := p.lines[name]; {
		case !ok:
			p.problem(key.Line, name, "unknown field", inventory.DidYouMean(key.Value, known))
			continue
		case twice:
			p.problem(key.Line, name, "it is set twice", fmt.Sprintf("remove this or line %d", p.lines[name]))
			continue
		}
		p.lines[name] = key.Line
		if f.Kind() == reflect.Struct {
			p.mapping(name, value, f)
		} else if err := value.Decode(f.Addr().Interface()); err != nil {
			p.problem(value.Line, name, fmt.Sprintf("bad value %q", value.Value), "want "+wanted(f, err))
		}
	}
}

// wanted describes the value of a field by an example.
func wanted(f reflect.Value, err error) string {
	switch f.Interface().(type) {
	case time.Duration:
		return "a duration such as 30s or 2m"
	case byteSize:
		return "a size such as 64GiB"
	case []string:
		return "a list of texts"
	case string:
		return "a text"
	}
	return err.Error()
}

// check looks at the values together.
func (p *configParser) check(c config) {
	for _, l := range []struct{ field, addr string }{{"boot", c.Boot}, {"agent", c.Agent}} {
		if _, err := portOf(l.addr); err != nil {
			p.problem(p.lines[l.field], l.field, err.Error(), "")
		}
	}
	if c.Syslog != "" {
		if _, err := portOf(c.Syslog); err != nil {
			p.problem(p.lines["syslog"], "syslog", err.Error(), `"" receives none`)
		}
	}
	if c.Boot == c.Agent {
		p.problem(p.lines["agent"], "agent", fmt.Sprintf("boot and agent are both %q", c.Boot), "give them two ports")
	}
	if !filepath.IsAbs(c.Data) { // it would be another one wherever the server is started
		p.problem(p.lines["data"], "data", fmt.Sprintf("%q is no absolute path", c.Data), "name a folder, such as "+defaultData)
	}
	if c.Turns < 0 {
		p.problem(p.lines["turns"], "turns", fmt.Sprintf("%d machines at once", c.Turns), "want a count, or 0 for no bound")
	}
	if c.SoftOff < 0 || c.SoftOff > time.Hour {
		p.problem(p.lines["softOff"], "softOff", fmt.Sprintf("%s is out of bounds", c.SoftOff), "want 0s to 1h")
	}
	if c.WatchBMCs != 0 && (c.WatchBMCs < 10*time.Second || c.WatchBMCs > 24*time.Hour) {
		p.problem(p.lines["watchBMCs"], "watchBMCs", fmt.Sprintf("%s is out of bounds", c.WatchBMCs), "want 10s to 24h, or 0s for never")
	}
	if _, err := logLevel(c.Log.Level); err != nil {
		p.problem(p.lines["log.level"], "log.level", fmt.Sprintf("unknown level %q", c.Log.Level), "want debug, info, warn or error")
	}
}

func portOf(addr string) (int, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, fmt.Errorf("address %q: want [host]:port", addr)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 {
		return 0, fmt.Errorf("address %q: the port must be 1-65535", addr)
	}
	return n, nil
}

func (c config) ramdiskDir() string {
	if c.Ramdisk != "" {
		return c.Ramdisk
	}
	return filepath.Join(c.Data, "ramdisk")
}

func (c config) storeFile() string { return filepath.Join(c.Data, "recast.db") }
