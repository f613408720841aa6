package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"gopkg.in/yaml.v3"
)

// config is recast.yaml: how the server runs, as opposed to what it serves. Every
// field has a default that works.
type config struct {
	// Data holds the store, images, keys and the ramdisk.
	Data string `yaml:"data"`
	// Listen addresses.
	Boot  string `yaml:"boot"`  // plain HTTP for machines
	Agent string `yaml:"agent"` // TLS for machines and operators
	// Store names etcd endpoints; none means the file store in Data.
	Store struct {
		Endpoints []string `yaml:"endpoints"`
	} `yaml:"store"`
	Images struct {
		MaxSize int64 `yaml:"maxSize"` // bytes, unpacked
	} `yaml:"images"`
	// Ramdisk folder, as "recast ramdisk build" makes it; default Data/ramdisk.
	Ramdisk string `yaml:"ramdisk"`
	// SoftOff is how long an operating system may take to shut down.
	SoftOff time.Duration `yaml:"softOff"`
	Log     struct {
		Level string `yaml:"level"` // debug, info, warn, error
	} `yaml:"log"`
}

const (
	defaultData   = "/var/lib/recast"
	defaultConfig = "/etc/recast/recast.yaml"
)

func defaults() config {
	var c config
	c.Data, c.Boot, c.Agent = defaultData, ":8080", ":8443"
	c.Images.MaxSize = 64 << 30
	c.SoftOff = 30 * time.Second
	c.Log.Level = "info"
	return c
}

// readConfig reads path over the defaults; a missing file is an error only
// where the operator named it.
func readConfig(path string, named bool) (config, error) {
	c := defaults()
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return c, nil
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	d := yaml.NewDecoder(bytes.NewReader(raw))
	d.KnownFields(true)
	if err := d.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("read configuration %s: %w; recast serve --print-config shows every field", path, err)
	}
	return c, nil
}

func (c config) ramdiskDir() string {
	if c.Ramdisk != "" {
		return c.Ramdisk
	}
	return filepath.Join(c.Data, "ramdisk")
}
