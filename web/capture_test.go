package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/provision"
)

func TestCaptureIsBoundedAndAudited(t *testing.T) {
	s := newSite(t)
	s.declare(t, "first")
	const path = apiRoot + "/machines/m1/capture"
	code, text, h := s.send(t, "GET", path+"?for=5s", operatorToken, nil)
	if code != http.StatusOK || text != "packets of m1" || h.Get("Content-Type") != pcapType {
		t.Errorf("%d %q %v", code, text, h)
	}
	for query, want := range map[string]int{"?for=2h": http.StatusBadRequest, "?for=-1s": http.StatusBadRequest, "?for=x": http.StatusBadRequest} {
		if code, text, _ := s.send(t, "GET", path+query, operatorToken, nil); code != want || !strings.Contains(text, "such as 60s") {
			t.Errorf("%s: %d %s", query, code, text)
		}
	}
	if code, text, _ := s.send(t, "GET", apiRoot+"/machines/m9/capture", operatorToken, nil); code != http.StatusNotFound {
		t.Errorf("an unknown machine: %d %s", code, text)
	}
	var log []provision.AuditEntry
	s.ok(t, "GET", apiRoot+"/audit", nil, &log)
	if last := log[len(log)-1]; last.What != "capture" || last.Machine != "m1" || last.Detail != "5s" {
		t.Errorf("audit: %+v", last)
	}

	// An error before the first byte is an answer; and so is one capture too many.
	s.Server.Capture = func(context.Context, *inventory.Machine, io.Writer) error { return errors.New("no right to") }
	if code, text, _ := s.send(t, "GET", path, operatorToken, nil); code != http.StatusConflict || !strings.Contains(text, "no right to") {
		t.Errorf("%d %s", code, text)
	}
	begun, end := make(chan time.Duration, mostCaptures), make(chan struct{})
	s.Server.Capture = func(ctx context.Context, _ *inventory.Machine, w io.Writer) error {
		until, _ := ctx.Deadline()
		begun <- time.Until(until)
		<-end
		return nil
	}
	done := make(chan struct{})
	for range mostCaptures {
		go func() { s.send(t, "GET", path, operatorToken, nil); done <- struct{}{} }()
	}
	for range mostCaptures {
		if left := <-begun; left > time.Minute || left < 30*time.Second {
			t.Errorf("%s are left of a minute", left)
		}
	}
	if code, text, _ := s.send(t, "GET", path, operatorToken, nil); code != http.StatusConflict || !strings.Contains(text, "under way already") {
		t.Errorf("%d %s", code, text)
	}
	close(end)
	for range mostCaptures {
		<-done
	}
}
