package agent

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"recast/inventory"
)

// reportFile is on the config volume of an installed system.
const reportFile = "recast-report.json"

// reportConfig is its content. CA is the certificate in PEM, or its digest.
type reportConfig struct {
	URL        string           `json:"url"`
	CA         string           `json:"ca"`
	Token      string           `json:"token"`
	Machine    string           `json:"machine"`
	Generation inventory.Digest `json:"generation"`
	Rendered   inventory.Digest `json:"rendered"`
	Write      string           `json:"write"`
}

func parseReportConfig(b []byte) (c reportConfig, ca inventory.Digest, err error) {
	if err := json.Unmarshal(b, &c); err != nil {
		return c, "", fmt.Errorf("parse: %w", err)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return c, "", fmt.Errorf("url %q is not https://HOST:PORT", c.URL)
	}
	if c.Token == "" || c.Machine == "" {
		return c, "", fmt.Errorf("token or machine is missing")
	}
	if block, _ := pem.Decode([]byte(c.CA)); block != nil {
		return c, inventory.DigestOf(block.Bytes), nil
	}
	ca, err = inventory.ParseDigest(c.CA)
	return c, ca, err
}

// ReportBooted tells the server, once, which generation runs here: the reporter
// of an installed system without cloud-init. It reads the config volume mounted
// at dir, and of the firmware its boot order and Secure Boot where there are any,
// and asks again until the server has heard it, refuses it, or patience ends.
func ReportBooted(ctx context.Context, dir string, vars Variables, patience time.Duration, log func(format string, args ...any)) error {
	b, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil {
		return fmt.Errorf("read %s: %w; is the config volume mounted there?", reportFile, err)
	}
	c, ca, err := parseReportConfig(b)
	if err != nil {
		return fmt.Errorf("read %s: %w", reportFile, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	host, _ := os.Hostname()
	client, err := NewClient(strings.TrimSuffix(c.URL, "/"), ca)
	if err != nil {
		return err
	}
	defer client.Close()
	report := inventory.BootReport{Machine: c.Machine, Generation: c.Generation, Rendered: c.Rendered, Write: c.Write,
		BootID: strings.TrimSpace(string(boot)), Hostname: host,
		BootOrder: hexVariable(vars, bootOrder), BootCurrent: hexVariable(vars, bootCurrent), SecureBoot: hexVariable(vars, secureBoot)}
	end := time.Now().Add(patience)
	for n := 0; ; n++ {
		err := client.Booted(ctx, c.Token, report)
		if err == nil || final(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return fmt.Errorf("report to %s: no success in %s: %w", c.URL, patience, err)
		}
		pause := wait(n)
		log("%v; trying again in %s", err, pause.Round(time.Second))
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}
