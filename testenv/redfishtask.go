package testenv

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	redfishTaskService  = redfishRoot + "/TaskService"
	redfishTasks        = redfishTaskService + "/Tasks"
	redfishTaskMonitors = redfishTaskService + "/TaskMonitors"
	redfishTasksMost    = 50 // kept; the oldest that ended goes
)

// redfishTaskRun is a change under way. Guarded by RedfishBMC.stateMu.
type redfishTaskRun struct {
	id, name     string
	state        string // as Redfish says: Running, Pending, Completed, Exception
	status       int    // of the answer that the monitor gives at the end
	message      map[string]any
	began, ended time.Time
}

func (t *redfishTaskRun) path() string { return redfishTasks + "/" + t.id }

func (b *RedfishBMC) newTask(name string) *redfishTaskRun {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	b.nextTask++
	t := &redfishTaskRun{id: strconv.Itoa(b.nextTask), name: name, state: "Running", began: time.Now()}
	if len(b.tasks) >= redfishTasksMost {
		b.tasks = b.tasks[1:]
	}
	b.tasks = append(b.tasks, t)
	return t
}

// end is the end of a task.
func (b *RedfishBMC) endTask(t *redfishTaskRun, err error) {
	b.stateMu.Lock()
	t.ended, t.state, t.status, t.message = time.Now(), "Completed", http.StatusNoContent, redfishMessage("Success")
	if err != nil {
		t.state, t.status, t.message = "Exception", http.StatusInternalServerError, redfishMessage("OperationFailed")
		t.message["Resolution"] = err.Error()
	}
	b.stateMu.Unlock()
	b.event("ResourceEvent.ResourceChanged", t.path())
}

// change makes a change and answers: at once, or by a task. A power command may
// lose its answer.
func (c *redfishCall) change(name string, power bool, do func() error) {
	b, faults := c.b, c.faults
	if kind := faults.Redfish.Task; kind != TaskNone {
		t := b.newTask(name)
		if kind != TaskStuck {
			b.work.Add(1)
			go func() {
				defer b.work.Done()
				if !b.wait(faults.Redfish.TaskTakes) {
					return
				}
				err := errors.New("the task was to fail")
				if kind == TaskOK {
					err = do()
				}
				b.endTask(t, err)
			}()
		}
		c.accepted(t)
		return
	}
	if err := do(); err != nil {
		c.broken(err)
		return
	}
	if power && faults.LoseReply || faults.LoseEveryReply {
		panic(http.ErrAbortHandler) // the connection ends without an answer
	}
	if faults.RejectAfter {
		c.fail(http.StatusBadRequest, "GeneralError")
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}

// accepted is the 202 that names the task's monitor.
func (c *redfishCall) accepted(t *redfishTaskRun) {
	c.w.Header().Set("Location", redfishTaskMonitors+"/"+t.id)
	c.reply(http.StatusAccepted, c.b.task(t))
}

func (b *RedfishBMC) task(t *redfishTaskRun) map[string]any {
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	fields := map[string]any{
		"TaskState": t.state, "TaskStatus": "OK", "StartTime": redfishTime(t.began), "PercentComplete": 50,
		"TaskMonitor": redfishTaskMonitors + "/" + t.id, "Messages": []any{},
	}
	if !t.ended.IsZero() {
		fields["EndTime"], fields["PercentComplete"], fields["Messages"] = redfishTime(t.ended), 100, []any{t.message}
		if t.state == "Exception" {
			fields["TaskStatus"] = "Critical"
		}
	}
	return redfishNew(t.path(), "#Task.v1_7_4.Task", t.id, t.name, fields)
}

// taskNamed is nil for an unknown one, and for one that is still hidden.
func (b *RedfishBMC) taskNamed(id string) *redfishTaskRun {
	hidden := b.now().Redfish.TaskHidden
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	for _, t := range b.tasks {
		if t.id == id && time.Since(t.began) >= hidden {
			return t
		}
	}
	return nil
}

func (b *RedfishBMC) taskService([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		return redfishNew(redfishTaskService, "#TaskService.v1_3_0.TaskService", "TaskService", "Task Service", map[string]any{
			"ServiceEnabled": true, "Status": redfishHealthy(), "CompletedTaskOverWritePolicy": "Oldest",
			"LifeCycleEventOnTaskStateChange": true, "Tasks": redfishID(redfishTasks),
		})
	}}
}

func (b *RedfishBMC) taskCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		hidden := b.now().Redfish.TaskHidden
		b.stateMu.Lock()
		defer b.stateMu.Unlock()
		var members []string
		for _, t := range b.tasks {
			if time.Since(t.began) >= hidden {
				members = append(members, t.path())
			}
		}
		return redfishCollection(redfishTasks, "Task", members)
	}}
}

func (b *RedfishBMC) taskAt(ids []string) *redfishResource {
	t := b.taskNamed(ids[0])
	if t == nil {
		return nil
	}
	return &redfishResource{get: func() map[string]any { return b.task(t) }}
}

// taskMonitorAt answers 202 while the task runs, then once what the change
// itself would have answered (DSP0266, 12.2); it stays, as most BMCs leave it.
func (b *RedfishBMC) taskMonitorAt(ids []string) *redfishResource {
	t := b.taskNamed(ids[0])
	if t == nil {
		return nil
	}
	return &redfishResource{serve: func(c *redfishCall) {
		b.stateMu.Lock()
		status, message := t.status, t.message
		b.stateMu.Unlock()
		switch {
		case status == 0:
			c.accepted(t)
		case status >= 400:
			redfishError(c.w, status, message)
		default:
			c.w.WriteHeader(status)
		}
	}}
}

// redfishTime is how Redfish writes times.
func redfishTime(t time.Time) string {
	return strings.Replace(t.UTC().Format(time.RFC3339), "Z", "+00:00", 1)
}
