package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"recast/image"
	"recast/inventory"
	"recast/tpm"
)

// TestTPMOnRealFirmwareVouchesForEveryBoot: OVMF measures what starts the ramdisk into a
// TPM, which enrols, and vouches for the write and for a boot through the gate; the log
// of the firmware leads to the values, and both boots have the same chain. One with more
// arguments, by a script that was altered on the wire, has the same too, and is found. One
// whose initrd was changed has another, though its agent says what it always says.
func TestTPMOnRealFirmwareVouchesForEveryBoot(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	s := newStory(t, storySetup{Takes: 20 * time.Minute, Machines: []RackMachine{
		{Name: "uefi", Firmware: FirmwareUEFI, BMC: BMCRedfish, NetworkFirst: true, TPM: true}}})
	stub, err := os.ReadFile(image.StubOf("/", inventory.AMD64))
	if err != nil {
		t.Skip("needs systemd-boot-efi (make setup)")
	}
	ownRamdisk(s)
	img := s.image("tpm")
	s.ready(img)
	s.declare(RackDeclare{Image: img.Digest, UserData: storyWord("tpm"), Immutable: "[1, 2]", MaxFailures: "100%",
		Spec: "  boot: {every: gate, onMismatch: repair}\n  evidence: {minimum: measured}\n"})
	s.apply()
	s.recast("inspect", "uefi")
	s.await("uefi", "known to have a TPM", 5*time.Minute, func(v storyView) bool { return v.Status.Phase == "available" && v.Status.TPM != nil })
	begun := time.Now()
	p := s.apply("--erase", "uefi")
	s.active(p, 8*time.Minute)
	vouched := func(n int) storyView {
		s.until("the TPM vouches", 5*time.Minute, func() bool {
			return s.count("uefi", begun, "its TPM vouches for it in quote") >= n && s.count("uefi", begun, "the system reports generation") >= n
		})
		return s.await("uefi", "active", time.Minute, func(v storyView) bool { return v.runs(p.Entries[0]) })
	}
	v := vouched(1)
	if e := v.Status.Evidence; e.Level != "measured" || len(v.Status.Findings) > 0 {
		t.Errorf("after the write: %v, evidence %+v", v, e)
	}
	first := v.Status.TPM.Quote
	if first.Log == "" {
		t.Error("there is no log of the firmware")
	}
	cycle := func() {
		s.recast("power", "off", "uefi")
		s.await("uefi", "off", time.Minute, func(storyView) bool { return !s.Node("uefi").Powered() })
		s.recast("power", "on", "uefi")
	}
	cycle()
	v = vouched(2)
	if e := v.Status.Evidence; e.Level != "measured" || !strings.Contains(e.Detail, "the gate read") || len(v.Status.Findings) > 0 {
		t.Errorf("after a boot through the gate: %v, evidence %+v", v, e)
	}
	if v.Status.TPM.Quote.Nonce == first.Nonce {
		t.Error("it is the quote of the boot before")
	}
	for i, have := range v.Status.TPM.Quote.PCRs {
		t.Logf("PCR %d: %s, then %s", have.Index, first.PCRs[i].Value.Short(), have.Value.Short())
	}
	found := func(what, want string) storyView {
		t.Helper()
		since := time.Now()
		cycle()
		v := s.await("uefi", "found "+what, 5*time.Minute, func(v storyView) bool { return strings.Contains(strings.Join(v.Status.Findings, ""), want) })
		s.until("its system runs", 5*time.Minute, func() bool { return s.count("uefi", since, "the system reports generation") > 0 })
		if len(v.Status.Findings) != 1 || v.Status.Evidence.Level != "read-back" {
			t.Errorf("%s: %v, evidence %+v", what, v.Status.Findings, v.Status.Evidence)
		}
		return v
	}
	restore := alterScripts(s, "rdinit=/init")
	v = found("with another argument", "arguments that the server did not give it: rdinit=/init")
	if text := tpm.Changed(tpm.ChainOf(first.PCRs, ""), tpm.ChainOf(v.Status.TPM.Quote.PCRs, "")); text != "" {
		t.Errorf("another argument changes %s too", text)
	}
	restore()
	changeInitrd(s, stub)
	found("with another ramdisk", "another boot chain than on record started the ramdisk: PCR 4 (loader and ramdisk), PCR 9 (the initrd)")
}

// alterScripts is somebody on the wire who adds to the kernel's arguments.
func alterScripts(s *story, more string) (restore func()) {
	s.t.Helper()
	nft := func(rules string) {
		s.t.Helper()
		s.must(s.Net.Do(func() error {
			out, err := exec.Command("nft", rules).CombinedOutput()
			if err != nil {
				return fmt.Errorf("nft %s: %w: %s", rules, err, out)
			}
			return nil
		}))
	}
	const port = 8080 // of the boot listener
	var between net.Listener
	s.must(s.Net.Do(func() (err error) {
		between, err = net.Listen("tcp4", ":0")
		return err
	}))
	kernel := regexp.MustCompile(`(?m)^(kernel \S+\.efi .*) \|\| `)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", r.In.Host },
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
			return conn, errors.Join(s.Net.Do(func() error {
				conn, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			}))
		}},
		ModifyResponse: func(r *http.Response) error {
			if r.Request.URL.Path != "/boot/script" {
				return nil
			}
			b, err := io.ReadAll(r.Body)
			b = kernel.ReplaceAll(b, []byte("${1} "+more+" || "))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
			r.Header.Set("Content-Length", strconv.Itoa(len(b)))
			return err
		},
	}
	server := &http.Server{Handler: proxy}
	go server.Serve(between)
	s.t.Cleanup(func() { _ = server.Close() })
	nft(fmt.Sprintf("add table ip between; add chain ip between in { type nat hook prerouting priority -100; }; add rule ip between in tcp dport %d redirect to :%d",
		port, between.Addr().(*net.TCPAddr).Port))
	return func() {
		s.t.Helper()
		nft("delete table ip between")
	}
}

// changeInitrd serves a ramdisk with the same kernel, the same agent, and a few zeros
// more behind it.
func changeInitrd(s *story, stub []byte) {
	s.t.Helper()
	r, err := image.OpenRamdisk(s.parts.ramdisk, inventory.AMD64)
	s.must(err)
	served := filepath.Join(r.Dir, image.UnsignedName(inventory.AMD64))
	r.Dir = s.t.TempDir()
	s.must(os.CopyFS(r.Dir, os.DirFS(s.parts.ramdisk)))
	initrd, err := os.OpenFile(r.InitrdPath(), os.O_APPEND|os.O_WRONLY, 0)
	s.must(err)
	_, err = initrd.Write(make([]byte, 4096))
	s.must(errors.Join(err, initrd.Close()))
	changed, err := image.Unify(stub, r)
	s.must(err)
	s.must(os.WriteFile(served, changed, 0o644))
}
