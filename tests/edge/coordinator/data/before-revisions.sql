-- A database as the code before revisions (6e940a8) wrote it, by `sqlite3.Connection.iterdump`.
BEGIN TRANSACTION;
CREATE TABLE age (
	run_s DOUBLE NOT NULL, 
	last_id INTEGER NOT NULL, 
	PRIMARY KEY (run_s)
);
INSERT INTO "age" VALUES(600.0,1);
CREATE TABLE bundle (
	digest VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "bundle" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','digits');
CREATE TABLE contribution (
	device VARCHAR NOT NULL, 
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	learner VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	n_samples INTEGER NOT NULL, 
	base_release INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	received_ms INTEGER NOT NULL, 
	merged_version INTEGER NOT NULL, 
	merged_release INTEGER NOT NULL, 
	model VARCHAR NOT NULL, 
	state_id VARCHAR NOT NULL, 
	PRIMARY KEY (device, lineage, backbone)
);
INSERT INTO "contribution" VALUES('cam-1','l1','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','statistics',40,40,0,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',10,40,1,'digits','aaaaaaaaaaaaaaaa');
INSERT INTO "contribution" VALUES('cam-2','l2','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','delta',5,5,0,'dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd',10,5,1,'digits','aaaaaaaaaaaaaaaa');
CREATE TABLE device (
	id VARCHAR NOT NULL, 
	online BOOLEAN NOT NULL, 
	session INTEGER NOT NULL, 
	boot INTEGER NOT NULL, 
	agent_version VARCHAR NOT NULL, 
	profile VARCHAR NOT NULL, 
	hardware JSON NOT NULL, 
	born BOOLEAN NOT NULL, 
	first_seen_ms INTEGER NOT NULL, 
	last_seen_ms INTEGER NOT NULL, 
	state_id VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "device" VALUES('cam-1',1,3,2,'0.1.0','raspberry-pi-4','{"cores": 4}',1,5,13,'aaaaaaaaaaaaaaaa');
INSERT INTO "device" VALUES('cam-2',0,1,1,'','','{}',0,7,7,'');
CREATE TABLE device_model (
	device VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	position INTEGER NOT NULL, 
	bundle VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	head VARCHAR NOT NULL, 
	release INTEGER NOT NULL, 
	samples INTEGER NOT NULL, 
	state_seq INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	state_release INTEGER NOT NULL, 
	state_detail VARCHAR NOT NULL, 
	experts JSON NOT NULL, 
	PRIMARY KEY (device, model)
);
INSERT INTO "device_model" VALUES('cam-1','digits',0,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',1,40,9,'active',1,'probation: no predecessor','{"shipped": [1.0, 0.5, 3]}');
INSERT INTO "device_model" VALUES('cam-1','voice',1,'ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',0,40,0,'',0,'','{}');
CREATE TABLE device_tag (
	device VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (device, "key")
);
INSERT INTO "device_tag" VALUES('cam-1','site','north');
CREATE TABLE event (
	id INTEGER NOT NULL, 
	device VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	detail VARCHAR NOT NULL, 
	at_ms INTEGER NOT NULL, 
	model VARCHAR NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "event" VALUES(1,'cam-1','drift','it’s 100 % ε',9,'digits');
CREATE TABLE forgotten (
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	device VARCHAR NOT NULL, 
	pending BOOLEAN NOT NULL, 
	at_ms INTEGER NOT NULL, 
	PRIMARY KEY (lineage, backbone)
);
INSERT INTO "forgotten" VALUES('l3','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cam-3',0,12);
CREATE TABLE merge_memory (
	name VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (name, backbone)
);
INSERT INTO "merge_memory" VALUES('server-optimizer','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',X'00FF6F7074');
INSERT INTO "merge_memory" VALUES('privacy-account','',X'616363');
CREATE TABLE refused (
	device VARCHAR NOT NULL, 
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	PRIMARY KEY (device, lineage, backbone)
);
INSERT INTO "refused" VALUES('cam-2','l2','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb',5,'garbage');
CREATE TABLE release (
	counter INTEGER NOT NULL, 
	kind VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	devices JSON NOT NULL, 
	reason VARCHAR NOT NULL, 
	created_ms INTEGER NOT NULL, 
	model VARCHAR NOT NULL, 
	PRIMARY KEY (counter)
);
INSERT INTO "release" VALUES(1,'head','9999999999999999999999999999999999999999999999999999999999999999','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','["tag.site=north", "cam-2"]','merge of 2 devices',11,'');
INSERT INTO "release" VALUES(2,'bundle','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','["*"]','pushed by hand',14,'digits');
CREATE TABLE telemetry (
	id INTEGER NOT NULL, 
	device VARCHAR NOT NULL, 
	boot INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	received_ms INTEGER NOT NULL, 
	"values" JSON NOT NULL, 
	state_id VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (device, state_id, boot, seq)
);
INSERT INTO "telemetry" VALUES(1,'cam-1',2,1,8,'{"boot": 2, "seq": 1, "model": "digits", "samples": 40, "acc": 0.9, "state_id": "aaaaaaaaaaaaaaaa", "experts": {"shipped": [1.0, 0.5, 3]}}','aaaaaaaaaaaaaaaa');
CREATE INDEX telemetry_received ON telemetry (received_ms);
COMMIT;
