-- Boots of which readings are missing: a boot counts its readings from 1 without gaps, so the table can tell by itself.
-- A gap is a reading that was lost, that is still under way, or that was refused (see the archive's rejected/).
SELECT
  robot_id,
  boot_id,
  MAX(seq) AS last_seq,
  COUNT(DISTINCT seq) AS stored,
  MAX(seq) - COUNT(DISTINCT seq) AS missing
FROM `${DATASET}.telemetry`
GROUP BY robot_id, boot_id
HAVING MAX(seq) > COUNT(DISTINCT seq)
